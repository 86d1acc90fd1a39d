"""How good a diffusion pocket model is: a bound on its bits per byte, and the share of held-out problems it solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from paceline.denoising.likelihood import mask_counts
from paceline.zoo.corpus import Split
from paceline.zoo.denoiser import Denoising, masked_logits
from paceline.zoo.network import device_of
from paceline.zoo.tasks import TASKS, problems

if TYPE_CHECKING:
    from paceline.engine.llm import LLM
    from paceline.zoo.packing import Ids

ROWS = 8  # windows per forward
ANSWER_TOKENS = 64  # room for an answer; the longest have about 40


@torch.inference_mode()
def bits_per_byte_bound(
    network: nn.Module, kind: Denoising, documents: Sequence[Ids], text_bytes: int, *, context: int = 512, samples: int = 2, seed: int = 0
) -> float:
    """An upper bound of the code length of the documents, in bits, over their UTF-8 size, by Monte Carlo.

    Documents are joined and cut into windows. A window, or every block of it for a block-diffusion network, has a number of masks that is
    spread evenly over the windows of a batch, and each masked token counts for length over masks (LLaDA, arXiv 2502.09992, eq. 6).

    Args:
        documents: ids that end with end-of-text; that last id is scored too. A rest shorter than a window is left out of ids and bytes.
        samples: masks drawn per window.
    """
    network.eval()
    joined = np.concatenate(documents).astype(np.int64)
    context = min(context, len(joined) // kind.block * kind.block)
    windows = torch.from_numpy(joined[: len(joined) // context * context]).view(-1, context)
    span = context if kind.layout == "llada" else kind.block
    generator, nats = torch.Generator().manual_seed(seed), 0.0
    for ids in windows.split(ROWS):
        for _ in range(samples):
            masked, weight = _counted(len(ids), context // span, span, generator)
            where = masked.to(device_of(network))
            logits = masked_logits(network, kind, ids.to(where.device), where).float()
            loss = F.cross_entropy(logits, ids[masked].to(where.device), reduction="none").cpu().double()
            nats += float((loss * weight[masked]).sum()) / samples
    return nats / math.log(2) / (text_bytes * windows.numel() / len(joined))


def _counted(rows: int, spans: int, span: int, generator: torch.Generator) -> tuple[Bool[Tensor, "rows tokens"], Tensor]:
    """Masks with evenly spread numbers per span, and the weight of each position."""
    counts = mask_counts(rows * spans, span, generator)
    counts = counts[torch.randperm(len(counts), generator=generator)]  # neighbouring spans must not have neighbouring numbers
    rank = torch.rand(rows * spans, span, generator=generator).argsort(-1).argsort(-1)
    weight = (span / counts.double())[:, None].expand(-1, span)
    return (rank < counts[:, None]).view(rows, -1), weight.reshape(rows, -1)


def solved(model: LLM, count: int, split: Split = Split.HELD_OUT, seed: int = 0) -> dict[str, float]:
    """Share of problems of each task that the model solves greedily with the method it was loaded with.

    Args:
        count: problems per task.
        split: where they come from.
        seed: of the draws.
    """
    shares = {}
    for task in TASKS:
        asked = list(problems(count, split, seed, (task,)))
        outputs = model.generate([problem.prompt for problem in asked], max_tokens=ANSWER_TOKENS)
        right = sum(problem.solved_by(output.text) for problem, output in zip(asked, outputs, strict=True))
        shares[task] = right / count
    return shares

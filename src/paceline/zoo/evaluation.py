"""How good a pocket model is: bits per byte, greedy samples, and how often a draft agrees with its target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from paceline.zoo.network import device_of, greedy_continuation, logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from paceline.zoo.packing import Ids

ROWS = 4  # windows per forward


@torch.inference_mode()
def bits_per_byte(model: nn.Module, documents: Sequence[Ids], text_bytes: int, context: int = 1024) -> float:
    """Total code length of the documents under the model, in bits, over their UTF-8 size.

    Each document is cut into windows of `context` tokens that do not overlap, so the first tokens of a window are predicted from
    little: a slightly pessimistic figure, comparable between models with any tokenizer.

    Args:
        documents: ids that end with end-of-text; that last id is scored too.
        text_bytes: UTF-8 bytes of the documents together.
    """
    device = device_of(model)
    model.eval()
    nats = 0.0
    for batch in _windows(documents, context):
        logits = logits_of(model, batch[:, :-1].to(device)).float()
        nats += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten().to(device), reduction="sum"))
    return nats / math.log(2) / text_bytes


@torch.inference_mode()
def acceptance_by_depth(
    draft: nn.Module, target: nn.Module, prompts: Sequence[Int[Tensor, " prompt"]], tokens: int = 128, depth: int = 5
) -> list[float]:
    """For each depth d = 1..depth: how often the draft's first d greedy tokens all match the target's greedy text.

    Measured at every position of the target's own continuations: the draft is rolled out greedily from each, as a speculating engine would.
    `1 + sum(result)` is the tokens per target forward of a chain of that length.
    """
    draft.eval()
    hits, positions = np.zeros(depth), 0
    for prompt in prompts:
        text = greedy_continuation(target, prompt, tokens + depth).to(device_of(draft))
        whole = torch.cat([prompt.to(text.device), text])
        starts = range(len(prompt), len(whole) - depth + 1)
        # One forward gives every first guess; a deeper guess counts only if the earlier ones matched, and then its context is the text.
        guesses = logits_of(draft, whole[None])[0].argmax(-1)
        right = (guesses[:-1] == whole[1:]).cpu()
        for start in starts:
            run = right[start - 1 : start - 1 + depth].int().cumprod(0)
            hits += run.numpy()
            positions += 1
    return [float(hit) / max(1, positions) for hit in hits]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Int[Tensor, " tokens"]:
    """Ids of a prompt, without special tokens."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)


def _windows(documents: Sequence[Ids], context: int) -> Iterator[Int[Tensor, "rows width"]]:
    """Rows of up to `context + 1` ids, each document behind an end-of-text id as in training; rows of a batch are equally long."""
    for document in documents:
        ids = torch.from_numpy(np.concatenate([document[-1:], document]).astype(np.int64))
        windows = [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]
        yield from torch.stack(windows[:-1]).split(ROWS) if len(windows) > 1 else ()
        yield windows[-1][None]

"""Likelihood of an answer under a masked diffusion model, by masking many subsets of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Forward = Callable[[Int[Tensor, "rows tokens"]], Float[Tensor, "rows tokens vocabulary"]]


def answer_nats(
    forward: Forward,
    prompt: Sequence[int],
    answer: Sequence[int],
    mask: int,
    *,
    samples: int = 128,
    batch: int = 16,
    seed: int = 0,
    draw: Literal["count", "rate"] = "count",
) -> float:
    """An upper bound of the negative log-likelihood of an answer given its prompt, in nats, by Monte Carlo.

    With a fixed number of masks per row, spread evenly over 1..length within a batch, the estimate varies far less than with a rate
    (LLaDA, arXiv 2502.09992, eq. 6). One sample is exact for an answer of one token.

    Args:
        forward: logits of every position, row i predicting position i.
        prompt, answer: ids.
        mask: id that stands for a masked position.
        samples: rows in all, rounded up to whole batches.
        batch: rows per forward.
        seed: of the masks.
        draw: `count` as above; `rate` masks each position with an evenly spread rate and never the first and the last (Dream's evaluator).
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.tensor([[*prompt, *answer]]).expand(batch, -1)
    first, length = len(prompt), len(answer)
    total, rounds = 0.0, -(-samples // batch)
    for _ in range(rounds):
        masked, weight = _counted(batch, length, generator) if draw == "count" else _rated(batch, length, generator)
        hidden = torch.zeros(clean.shape, dtype=torch.bool)
        hidden[:, first:] = masked
        logits = forward(torch.where(hidden, mask, clean))
        loss = F.cross_entropy(logits[hidden].double(), clean[hidden].to(logits.device), reduction="none").cpu()
        total += float((loss * weight[:, None].expand(-1, length)[masked]).sum()) / batch
    return total / rounds


def mask_counts(rows: int, length: int, generator: torch.Generator) -> Int[Tensor, " rows"]:
    """Numbers of masks from 1 to `length`, evenly spread from a random start: every number is equally likely in every row."""
    start = torch.randint(1, length + 1, (1,), generator=generator)
    spread = torch.linspace(0, length * (rows - 1) / rows, rows).round().long()
    return (start + spread - 1) % length + 1


def _counted(rows: int, length: int, generator: torch.Generator) -> tuple[Bool[Tensor, "rows tokens"], Float[Tensor, " rows"]]:
    counts = mask_counts(rows, length, generator)
    rank = torch.rand(rows, length, generator=generator).argsort(-1).argsort(-1)
    return rank < counts[:, None], length / counts.double()


def _rated(rows: int, length: int, generator: torch.Generator) -> tuple[Bool[Tensor, "rows tokens"], Float[Tensor, " rows"]]:
    rate = (torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1 * (1 - 1e-3) + 1e-3
    masked = torch.rand(rows, length, generator=generator) < rate[:, None]
    masked[:, [0, -1]] = False
    return masked, 1 / rate.double()

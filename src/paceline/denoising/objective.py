"""What masked diffusion models are trained on: which positions are masked, and how much each of them counts.

Rows are sequences of equal length. Prompts are never masked; an answer is padded with end-of-text ids, which are part of it (LLaDA,
arXiv 2502.09992, sec. 2.2-2.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_RATE = 1e-3
REDRAWS = 10


def rates(rows: int, generator: torch.Generator, least: float = LEAST_RATE) -> Float[Tensor, " rows"]:
    """A mask rate per row: `(1 - least) * t + least` with t uniform, so that no rate is 0."""
    return (1 - least) * torch.rand(rows, generator=generator) + least


def pretraining_length(longest: int, generator: torch.Generator, share: float = 0.01) -> int:
    """Length of a pretraining batch: the longest, or, for one in a hundred, uniform from 1 to it (LLaDA, sec. 2.2)."""
    if float(torch.rand(1, generator=generator)) >= share:
        return longest
    return int(torch.randint(1, longest + 1, (1,), generator=generator))


def masks(
    answers: Bool[Tensor, "rows tokens"], rate: Float[Tensor, " rows"], generator: torch.Generator, *, at_least_one: bool = False
) -> Bool[Tensor, "rows tokens"]:
    """Which positions are masked: those of answers, independently, each with the rate of its row.

    Args:
        answers: positions that may be masked.
        rate: per row.
        generator: of the draws, on the CPU.
        at_least_one: draw a row again, up to ten times, if nothing of it is masked, then mask one position (SDAR).
    """
    masked = answers & (torch.rand(answers.shape, generator=generator) < rate[:, None])
    if not at_least_one:
        return masked
    for _ in range(REDRAWS):
        empty = ~masked.any(-1) & answers.any(-1)
        if not empty.any():
            return masked
        again = answers & (torch.rand(answers.shape, generator=generator) < rate[:, None])
        masked = torch.where(empty[:, None], again, masked)
    for row in (~masked.any(-1) & answers.any(-1)).nonzero()[:, 0].tolist():
        where = answers[row].nonzero()[:, 0]
        masked[row, where[torch.randint(len(where), (1,), generator=generator)]] = True
    return masked


def counted_masks(
    answers: Bool[Tensor, "rows tokens"], generator: torch.Generator
) -> tuple[Bool[Tensor, "rows tokens"], Float[Tensor, " rows"]]:
    """Masks with a fixed number per row, in place of a rate: numbers from 1 to the row's answer length, evenly spread over the rows.

    Every number is equally likely in every row, so that the expected loss is the same bound as with rates (LLaDA, arXiv 2502.09992, eq. 6,
    and Ou et al. 2024, arXiv 2406.03736); its variance is far smaller, since a row's loss is the mean over its masked tokens.

    Args:
        answers: positions that may be masked, at least one per row.
        generator: of the draws, on the CPU.

    Returns:
        Masks, and the share of each answer that is masked, which stands for the rate.
    """
    rows, length = len(answers), answers.sum(-1)
    spread = (torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1
    spread = spread[torch.randperm(rows, generator=generator)]  # neighbours must not have neighbouring numbers
    count = torch.minimum(1 + (spread * length).long(), length)
    order = torch.rand(answers.shape, generator=generator).masked_fill(~answers, 2.0)
    masked = answers & (order.argsort(-1).argsort(-1) < count[:, None])
    return masked, count / length


def masked_loss(
    logits: Float[Tensor, "rows tokens vocabulary"],
    ids: Int[Tensor, "rows tokens"],
    masked: Bool[Tensor, "rows tokens"],
    rate: Float[Tensor, " rows"],
    answers: Bool[Tensor, "rows tokens"],
    *,
    shifted: bool = False,
    pooled: bool = False,
    weights: Float[Tensor, "rows tokens"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of masked positions, each divided by its row's rate: an upper bound of the negative log-likelihood per token, in nats.

    Args:
        logits: of the noisy input.
        ids: clean.
        masked, rate: as drawn.
        answers: positions of answers; their number divides the sum. All positions in pretraining.
        shifted: the logits of position i predict token i + 1 (Dream).
        pooled: divide by the answers' total length instead of row by row (SDAR).
        weights: more per position, in place of dividing by the rate (Dream, `context_weights`).
    """
    if shifted:
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    loss = F.cross_entropy(logits[masked].float(), ids[masked], reduction="none")
    return weighted_loss(loss, masked, rate, answers, pooled=pooled, weights=weights)


def weighted_loss(
    loss: Float[Tensor, " masked"],
    masked: Bool[Tensor, "rows tokens"],
    rate: Float[Tensor, " rows"],
    answers: Bool[Tensor, "rows tokens"],
    *,
    pooled: bool = False,
    weights: Float[Tensor, "rows tokens"] | None = None,
) -> Float[Tensor, ""]:
    """`masked_loss` from the cross-entropies of the masked positions alone, row by row: nothing else needs an output projection.

    Args:
        loss: in nats.
        masked, rate, answers, pooled, weights: as for `masked_loss`.
    """
    weight = (1 / rate)[:, None].expand(masked.shape) if weights is None else weights
    length = answers.sum(-1, keepdim=True).clamp(min=1)
    share = 1 / answers.sum() if pooled else 1 / (length * len(masked))
    return (loss * (weight * share)[masked]).sum()


def context_weights(masked: Bool[Tensor, "rows tokens"], reach: float = 0.1) -> Float[Tensor, "rows tokens"]:
    """How well each position is informed by visible ones: half the sum over them of `reach * (1 - reach)^(distance - 1)`.

    Source: Dream (arXiv 2508.15487), context-adaptive noise rescheduling, a geometric kernel over distances.

    Args:
        masked: positions without a token.
        reach: parameter of the geometric law; larger looks less far.
    """
    where = torch.arange(masked.shape[1])
    distance = (where[:, None] - where[None, :]).abs()
    kernel = torch.where(distance > 0, reach * (1 - reach) ** (distance - 1).clamp(min=0), 0.0)
    return 0.5 * (~masked).to(kernel.dtype) @ kernel.T


def noisy_and_clean(tokens: int, block: int) -> tuple[Int[Tensor, " twice"], Bool[Tensor, "twice twice"]]:
    """Positions and visibility of a noisy copy followed by the clean one (SDAR, arXiv 2510.06303; Arriola et al. 2025, arXiv 2503.09573).

    A noisy block sees itself and the clean blocks before it; a clean block sees clean blocks up to itself.
    """
    number = torch.arange(tokens) // block
    same, before = number[:, None] == number[None, :], number[:, None] > number[None, :]
    nothing = torch.zeros_like(same)
    visible = torch.cat([torch.cat([same, before], 1), torch.cat([nothing, same | before], 1)])
    return torch.arange(tokens).repeat(2), visible

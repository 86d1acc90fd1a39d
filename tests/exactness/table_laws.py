"""A pair of second-order tables that stand in for target and draft, and how far text is from a table's law."""

from __future__ import annotations

import torch

WIDE = 6


def table(seed: int, scale: float = 0.6) -> torch.Tensor:
    """Logits after each pair of tokens."""
    return scale * torch.randn(WIDE, WIDE, WIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGET = table(1)
DRAFT = TARGET + table(2, 0.5)


def deviation(output: list[list[int]], tokens: int, law: torch.Tensor) -> float:
    """Chi-square of 3-grams given their first two tokens, in standard deviations above its mean."""
    counts = torch.zeros(WIDE, WIDE, WIDE, dtype=torch.float64)
    for sequence in output:
        text = [0, 1, *sequence[:tokens]]
        for a, b, c in zip(text, text[1:], text[2:], strict=False):
            counts[a, b, c] += 1
    expected = counts.sum(-1, keepdim=True) * law
    usable = expected.amin(-1) >= 5
    assert usable.sum() > WIDE  # of the contexts
    statistic = ((counts - expected) ** 2 / expected)[usable].sum().item()
    freedom = int(usable.sum()) * (WIDE - 1)
    return (statistic - freedom) / (2 * freedom) ** 0.5

"""Whether a decoder is better than another family of decoders at the same number of forwards, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from paceline.bench.denoising_rows import Run, interval
from paceline.denoising.canvas import Floats


@dataclass(frozen=True, slots=True)
class Scored:
    """A decoder's forwards and scores, one per prompt."""

    forwards: Floats
    scores: Floats

    @property
    def cost(self) -> float:
        """Mean forwards."""
        return float(self.forwards.mean())


def agreement(run: Run, reference: Run) -> Scored:
    """Share of each answer's tokens that are those of a reference."""
    shares = [float(np.mean(np.array(mine) == np.array(other))) for mine, other in zip(run.tokens, reference.tokens, strict=True)]
    return Scored(np.array(run.forwards, dtype=float), np.array(shares))


def lead(found: Scored, family: Sequence[Scored], seed: int = 0) -> tuple[float, list[float]] | None:
    """How much higher the mean score is than the family's at the same mean forwards, with a 95 % bootstrap interval over prompts.

    Between two of the family the score is interpolated, for each prompt by itself, so that differences are paired.

    Args:
        found: what is judged.
        family: the alternatives, such as one rule with several thresholds.
        seed: of the bootstrap.

    Returns:
        `None` where the family has no decoder on one of the two sides.
    """
    ordered = sorted(family, key=lambda other: other.cost)
    for below, above in pairwise(ordered):
        if below.cost <= found.cost <= above.cost:
            width = above.cost - below.cost
            share = (found.cost - below.cost) / width if width else 1.0
            differences = found.scores - ((1 - share) * below.scores + share * above.scores)
            return float(differences.mean()), interval(differences, seed)
    return None

"""What one forward says about the open positions of a block, in the only form that commit rules see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.denoising.canvas import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Guesses:
    """One row per position that a rule asked about, in ascending order of position.

    Args:
        positions: of the canvas.
        tokens: predicted there.
        logprob: natural logarithm of the token's probability at temperature 1.
        score: what the decoder's algorithm orders positions by, larger first; `inf` marks what is
            decided now whatever the rule says, and counts as certain.
        entropy: of the prediction at temperature 1, in nats; empty unless the rule asked for it.
        open: which of them may be decided (a rule may ask about decided ones too).
    """

    positions: Ints
    tokens: Ints
    logprob: Floats
    score: Floats
    entropy: Floats
    open: Flags

    def before(self, position: int) -> Guesses:
        """The rows of smaller positions."""
        count = int(np.searchsorted(self.positions, position))
        return Guesses(
            self.positions[:count], self.tokens[:count], self.logprob[:count], self.score[:count], self.entropy[:count], self.open[:count]
        )

    def ranked(self, score: Floats | None = None) -> Ints:
        """Indices of the open rows, best first; equal scores keep the order of positions, so that top k is part of top k + 1."""
        candidates = np.flatnonzero(self.open)
        chosen = self.score if score is None else score
        return candidates[np.argsort(-chosen[candidates], kind="stable")]

    def best(self, count: int, score: Floats | None = None) -> Flags:
        """Marks the `count` best open rows."""
        marks = np.zeros(len(self.positions), dtype=bool)
        marks[self.ranked(score)[: max(0, count)]] = True
        return marks

"""How many positions a static decoder decides per step: even shares (LLaDA), a fixed number, or Dream's shrinking shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paceline.denoising.canvas import Canvas


class Schedule(Protocol):
    """Steps of a block, and positions per step."""

    def steps(self, canvas: Canvas) -> int:
        """Forwards that the current block takes."""

    def count(self, canvas: Canvas) -> int:
        """Positions to decide in the step at hand; at most as many as are open."""

    def planned(self, canvas: Canvas) -> int:
        """Forwards that the whole answer takes."""


@dataclass(frozen=True, slots=True)
class PerStep:
    """The same number of positions in every step; what is left in the last."""

    tokens: int = 1

    def steps(self, canvas: Canvas) -> int:
        return -(-canvas.opened // self.tokens)

    def count(self, canvas: Canvas) -> int:
        return min(self.tokens, canvas.opened - self.tokens * canvas.step)

    def planned(self, canvas: Canvas) -> int:
        whole, rest = divmod(canvas.length - canvas.prompt, canvas.block)
        return whole * -(-canvas.block // self.tokens) + -(-rest // self.tokens)


@dataclass(frozen=True, slots=True)
class EvenSteps:
    """A number of steps for the whole answer, shared evenly by its blocks; within a block, larger shares come first.

    Source: LLaDA (arXiv 2502.09992), released generation code: `n // steps`, and one more in the first `n % steps` steps.
    """

    total: int

    def steps(self, canvas: Canvas) -> int:
        return max(1, self.total // canvas.blocks)

    def count(self, canvas: Canvas) -> int:
        share, rest = divmod(canvas.opened, self.steps(canvas))
        return share + (canvas.step < rest)

    def planned(self, canvas: Canvas) -> int:
        return self.steps(canvas) * canvas.blocks


@dataclass(frozen=True, slots=True)
class DreamSteps:
    """A time grid from 1 down to almost 0; a step decides the share of the open positions by which time shrinks, rounded down.

    The last step decides all that are left. Because of the rounding, one step per position begins with a step that decides nothing and
    ends with one that decides two or more; the number of forwards is `total` whatever happens.

    Source: Dream (arXiv 2508.15487), released generation code, in its float32.

    Args:
        total: steps of the whole answer, shared evenly by its blocks.
        eps: where the grid ends.
    """

    total: int
    eps: float = 1e-3

    def steps(self, canvas: Canvas) -> int:
        return max(1, self.total // canvas.blocks)

    def share(self, canvas: Canvas) -> float:
        """Share of the open positions that this step is expected to decide; 1 in the last step."""
        steps = self.steps(canvas)
        if canvas.step >= steps - 1:
            return 1.0
        grid = np.linspace(1.0, self.eps, steps + 1).astype(np.float32)
        return float(np.float32(1.0) - grid[canvas.step + 1] / grid[canvas.step])

    def count(self, canvas: Canvas) -> int:
        left = int(canvas.open[canvas.low : canvas.high].sum())
        return int(np.float32(left) * np.float32(self.share(canvas)))

    def planned(self, canvas: Canvas) -> int:
        return self.steps(canvas) * canvas.blocks

"""End-of-text prediction: what lies behind the end of an answer is cut off the canvas, so that later forwards do not compute padding.

Source: Learning to Parallel (arXiv 2509.25188), sec. 3.3 (EoTP). The model then sees a shorter canvas, so that other tokens may come out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.guesses import Guesses


@dataclass(frozen=True, slots=True)
class Cut:
    """Shortens a canvas once the end of its text is known.

    Args:
        eos: ids that end an answer.
        foresight: as released code does, cut behind an end that was just decided or else behind the likeliest end that is merely predicted
            anywhere on the canvas; it may cut answers off. Otherwise only behind the first end that is decided.
    """

    eos: tuple[int, ...]
    foresight: bool = False

    def apply(self, canvas: Canvas, guesses: Guesses, chosen: Flags) -> None:
        """Cut behind the end, if there is one.

        Args:
            guesses: of this step; with `foresight`, of every open position of the canvas.
            chosen: which of them were decided.
        """
        end = self._foreseen(guesses, chosen) if self.foresight else self._decided(canvas)
        if end is not None:
            canvas.cut(end + 1)

    def _decided(self, canvas: Canvas) -> int | None:
        found = np.flatnonzero(np.isin(canvas.ids[canvas.prompt :], self.eos))
        return canvas.prompt + int(found[0]) if len(found) else None

    def _foreseen(self, guesses: Guesses, chosen: Flags) -> int | None:
        ends = guesses.open & np.isin(guesses.tokens, self.eos)
        if (ends & chosen).any():
            return int(guesses.positions[ends & chosen][0])
        if not ends.any():
            return None
        return int(guesses.positions[np.argmax(np.where(ends, guesses.logprob, -np.inf))])

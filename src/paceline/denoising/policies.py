"""Forward policies: which positions a forward computes, and what stands in for the others.

Keys and values live in the canvas's own slots, one per position. A position that is not fed is read as the last forward left it: a cache
is nothing but a smaller set of fed rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from paceline.core.batch import MemoryView, Segment
from paceline.denoising.canvas import Canvas


@dataclass(frozen=True, slots=True)
class Look:
    """Rows of one canvas in one forward.

    Args:
        view: memory of the canvas.
        positions: fed, ascending.
        segment: how they see each other and the rest.
        keep: leading rows whose keys and values are final: they are committed to memory behind the forward.
    """

    view: MemoryView
    positions: Sequence[int]
    segment: Segment
    keep: int = 0


class ForwardPolicy(Protocol):
    """Chooses rows. Pure functions of the canvas and of what its memory has committed."""

    @property
    def anew(self) -> bool:
        """Whether open positions of a block are predicted in any of its forwards, its first one too in models whose positions predict the
        one behind them; otherwise that one is decided when the block begins."""

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        """The next forward of a canvas.

        Args:
            view: its memory, with a slot for every position.
            room: rows that prefill should stay within.
        """


@dataclass(frozen=True, slots=True)
class Whole:
    """No cache: every forward computes the whole canvas."""

    anew: bool = True

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        return canvas_rows(canvas, view, range(canvas.length))


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first forward of a block computes the whole canvas, later ones leave out what lies before the block.

    Source: Fast-dLLM (arXiv 2505.22618), sec. 3.2.

    Args:
        refresh: compute the whole canvas every so many steps of a block as well; 0 only at its start.
    """

    refresh: int = 0

    @property
    def anew(self) -> bool:
        """Only where every forward computes everything; else the position before the block is not fed until it ends, or is renewed."""
        return self.refresh == 1

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        return canvas_rows(canvas, view, range(0 if _renews(canvas, self.refresh) else canvas.low, canvas.length))


@dataclass(frozen=True, slots=True)
class Dual:
    """The first forward of a block computes the whole canvas, later ones the block alone; what lies behind it stays as it was.

    Source: Fast-dLLM (arXiv 2505.22618), sec. 3.2.

    Args:
        refresh: as for `Prefix`.
    """

    refresh: int = 0

    @property
    def anew(self) -> bool:
        """Only where every forward computes everything; else the position before the block is not fed until it ends, or is renewed."""
        return self.refresh == 1

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        whole = _renews(canvas, self.refresh)
        return canvas_rows(canvas, view, range(canvas.length) if whole else range(canvas.low, canvas.high))


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block-causal models: blocks before the current one are in memory, exactly; a forward computes the current block.

    The prompt's whole blocks are read first. A decided block is computed once more, clean, to be stored: in a forward of its own, as
    released code does, or together with the first step of the next block, which gives the same numbers with one forward less per block.

    Source: SDAR (arXiv 2510.06303).

    Args:
        joined: store a block together with the next one's first step.
        ahead: blocks behind the current one that are computed with it, each seeing those before it.
    """

    joined: bool = True
    ahead: int = 0
    anew: bool = False

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        base, low = view.length, canvas.low
        high = min(canvas.high + self.ahead * canvas.block, canvas.length)
        clean = low - base
        if clean and (not self.joined or clean + high - low > max(room, 2 * (1 + self.ahead) * canvas.block)):
            rows = min(clean, max(canvas.block, room // canvas.block * canvas.block))
            return Look(view, range(base, base + rows), _block_causal(view, rows, canvas.block), keep=rows)
        return Look(view, range(base, high), _block_causal(view, high - base, canvas.block), keep=clean)


def _renews(canvas: Canvas, refresh: int) -> bool:
    return canvas.step == 0 or (refresh > 0 and canvas.step % refresh == 0)


def canvas_rows(canvas: Canvas, view: MemoryView, positions: Sequence[int]) -> Look:
    """Rows at ascending positions that see the whole canvas."""
    offsets = None if len(positions) == canvas.length else positions
    return Look(view, positions, Segment(view, len(positions), offsets=offsets, canvas=canvas.length))


def _block_causal(view: MemoryView, rows: int, block: int) -> Segment:
    """Rows behind the committed ones; each sees its own block and those before it. Committed slots are whole blocks."""
    if rows <= block:
        return Segment(view, rows, canvas=rows)
    number = torch.arange(rows) // block
    return Segment(view, rows, mask=number[:, None] >= number[None, :])

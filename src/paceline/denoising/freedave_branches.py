"""Several states of one canvas in one forward: each has slots of its own for the rows it feeds, and shares all others.

Nothing is copied. A branch's memory is the canvas's own one with the fed slots replaced by others, so keys and values of the prompt, of
stored blocks and of frozen positions are read where they are (FreeDave's repeated cache, without the repetition).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from paceline.core.batch import MemoryView, Segment
from paceline.denoising.canvas import Canvas
from paceline.denoising.policies import ForwardPolicy, Look


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A memory with some of its logical slots replaced by others of the same memory; a `core.batch.MemoryView`.

    Args:
        base: of the canvas.
        fed: logical slots that the branch writes itself, ascending.
        own: where they are instead: `own`, `own + 1`, ...
    """

    base: MemoryView
    fed: Many[int]
    own: int

    @property
    def length(self) -> int:
        """Committed slots, those of the base."""
        return self.base.length

    def runs(self, stop: int) -> list[tuple[int, int]]:
        """Physical half-open ranges that hold logical slots `0..stop`, in order."""
        held = self.base.runs(max(stop, self.own + len(self.fed)))
        physical = np.concatenate([np.arange(low, high) for low, high in held])
        logical = np.arange(stop)
        fed = np.asarray(self.fed)
        inside = fed < stop
        logical[fed[inside]] = self.own + np.flatnonzero(inside)
        slots = physical[logical]
        edges = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), stop]
        return [(int(slots[low]), int(slots[high - 1]) + 1) for low, high in pairwise(edges)]


def scratch_of(policy: ForwardPolicy, canvas: Canvas) -> int:
    """Rows that a branch of a canvas feeds at most: those of the second step of its first block."""
    trial = canvas.copy()
    trial.step, trial.patterns = 1, {}
    return len(policy.look(trial, _Stored(canvas.low if canvas.aligned else 0), canvas.length).positions)


def batched(look: Look, canvas: Canvas, branches: int) -> tuple[Look, ...]:
    """A look per branch; the first one is the canvas's own, and the only one that stores what is final.

    Args:
        look: of the canvas.
        canvas: with `scratch` slots for all other branches.
        branches: at least 1.
    """
    view, offsets = look.view, _offsets(look)[look.keep :]
    mask = None if look.segment.mask is None else look.segment.mask[look.keep :]
    looks = [look]
    for index in range(branches - 1):
        own = Branch(view, [view.length + offset for offset in offsets], canvas.length + index * len(offsets))
        segment = replace(look.segment, memory=own, rows=len(offsets), mask=mask, offsets=offsets)
        looks.append(replace(look, view=own, positions=look.positions[look.keep :], segment=segment, keep=0))
    return tuple(looks)


def joined(look: Look, canvas: Canvas, branches: int) -> Look:
    """All branches as rows of one look: each sees the shared slots and itself, never another branch.

    Args as for `batched`. The branches' rows follow those of the look.
    """
    if branches == 1:
        return look
    view, offsets = look.view, _offsets(look)
    fed = offsets[look.keep :]
    first, width = canvas.length - view.length, len(fed)
    own = range(first, first + (branches - 1) * width)
    base = _visible(look.segment)
    mask = torch.zeros(len(offsets) + len(own), own.stop, dtype=torch.bool)
    mask[: len(offsets), : base.shape[1]] = base
    columns = torch.tensor(fed)
    for index in range(branches - 1):
        rows = slice(len(offsets) + index * width, len(offsets) + (index + 1) * width)
        seen = base[look.keep :].clone()
        mask[rows, first + index * width : first + (index + 1) * width] = seen[:, columns]
        seen[:, columns] = False
        mask[rows, : base.shape[1]] = seen
    positions = [*look.positions, *list(look.positions[look.keep :]) * (branches - 1)]
    where = [*range(view.length, canvas.length), *positions[len(offsets) :]]
    segment = replace(look.segment, rows=len(positions), mask=mask, offsets=[*offsets, *own], scratch_positions=where, canvas=None)
    return replace(look, positions=positions, segment=segment)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A memory of which only the length is known."""

    length: int

    def runs(self, stop: int) -> list[tuple[int, int]]:
        return [(0, stop)]


def _offsets(look: Look) -> list[int]:
    """Scratch slot of each row of a look."""
    return list(range(len(look.positions)) if look.segment.offsets is None else look.segment.offsets)


def _visible(segment: Segment) -> Bool[Tensor, "rows span"]:
    """Which scratch slots each row of a canvas's segment sees."""
    if segment.mask is not None:
        return segment.mask
    return torch.ones(segment.rows, segment.span, dtype=torch.bool)

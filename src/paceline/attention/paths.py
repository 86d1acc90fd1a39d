"""Which slots each row sees, as runs in the order of its path: the form in which attention needs no mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from paceline.core.batch import Segment

Run = tuple[int, int]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Paths:
    """Visible slots of every row.

    Args:
        first: runs of row r are `first[r] .. first[r + 1]`.
        runs: half-open slot ranges.
        longest: most slots that a row sees.
    """

    first: Int[Tensor, " bounds"]
    runs: Int[Tensor, "runs 2"]
    longest: int


def paths(segments: Sequence[Segment], positions: Sequence[int], window: int | None) -> Paths | None:
    """The paths of all rows, or `None` where a window meets positions that do not count the keys before them."""
    first: list[int] = [0]
    runs: list[Run] = []
    longest = row = 0
    for segment in segments:
        tree = _tree(segment) if window is None else None
        if tree is not None:
            first.extend((tree[0] + len(runs)).tolist())
            runs.extend(tree[1].tolist())
            longest, row = max(longest, tree[2]), row + segment.rows
            continue
        for own, rows in _rows(segment):
            count = sum(high - low for low, high in own)
            if window is not None and count > window:
                if any(count != position + 1 for position in positions[row : row + rows]):
                    return None
                own, count = _last(own, window), window
            runs.extend(own * rows)
            first.extend(range(first[-1] + len(own), len(runs) + 1, len(own)) if own else [first[-1]] * rows)
            longest, row = max(longest, count), row + rows
    return Paths(_tensor(first), _tensor(runs), longest)


def _tree(segment: Segment) -> tuple[Ints, Ints, int] | None:
    """A masked segment's rows at once: where each one's runs end, the runs, and most slots that a row sees. `None` where rows lie apart."""
    if segment.mask is None:
        return None
    context = segment.memory.length
    held = segment.memory.runs(context + segment.span)
    base, scratch = _head(held, context), _tail(held, context)
    row, low, high = _edges(segment.mask)
    begins = np.diff(row, prepend=-1) > 0
    if len(scratch) != 1 or begins.sum() < segment.rows:
        return None
    start = scratch[0][0]
    runs = np.stack([low + start, high + start], 1)
    if base and base[-1][1] == start and not low[begins].all():
        if low[begins].any():
            return None
        runs[begins, 0] = base.pop()[0]  # everybody goes on where the context ends
    if base:
        owner = np.concatenate([np.repeat(np.arange(segment.rows), len(base)), row])
        runs = np.concatenate([np.tile(np.array(base), (segment.rows, 1)), runs])[np.argsort(owner, kind="stable")]
    ends = np.cumsum(np.bincount(row, minlength=segment.rows) + len(base))
    return ends, runs, context + int(np.bincount(row, high - low).max())


def _tensor(values: list[int] | list[Run]) -> Int[Tensor, ...]:
    """By way of numpy, which reads lists faster."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _rows(segment: Segment) -> list[tuple[list[Run], int]]:
    """Runs of the rows of a segment, and how many rows in turn have them."""
    context = segment.memory.length
    held = list(segment.memory.runs(context + segment.span))
    if segment.canvas is not None:
        return [(held, segment.rows)]
    if segment.mask is None and segment.offsets is None:
        if len(held) == 1:
            low = held[0][0]
            return [([(low, low + stop)], 1) for stop in range(context + 1, context + segment.rows + 1)]
        return [(_head(held, context + row + 1), 1) for row in range(segment.rows)]
    base = _head(held, context)
    scratch = _tail(held, context)
    if segment.mask is None:
        offsets = range(segment.rows) if segment.offsets is None else segment.offsets
        seen = [[(at, at + 1) for at in offsets[: row + 1]] for row in range(segment.rows)]
    else:
        seen = _stretches(segment.mask)
    return [(_joined(base, [run for low, high in own for run in _head(_tail(scratch, low), high - low)]), 1) for own in seen]


def _edges(mask: Bool[Tensor, "rows span"]) -> tuple[Ints, Ints, Ints]:
    """Stretches of visible columns as half-open ranges, row by row: row, low and high of each."""
    edges = np.diff(mask.cpu().numpy().view(np.int8), axis=1, prepend=0, append=0)
    rows, columns = edges.nonzero()
    return rows[::2], columns[::2], columns[1::2]


def _stretches(mask: Bool[Tensor, "rows span"]) -> list[list[Run]]:
    """The same, a list for each row."""
    seen: list[list[Run]] = [[] for _ in range(len(mask))]
    for row, low, high in zip(*(found.tolist() for found in _edges(mask)), strict=True):
        seen[row].append((low, high))
    return seen


def _joined(base: list[Run], more: list[Run]) -> list[Run]:
    """Runs behind runs, adjacent ones merged."""
    out = list(base)
    for low, high in more:
        if out and out[-1][1] == low:
            out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return out


def _head(runs: Sequence[Run], count: int) -> list[Run]:
    """The first `count` slots."""
    out: list[Run] = []
    for low, high in runs:
        if count <= 0:
            break
        out.append((low, min(high, low + count)))
        count -= high - low
    return out


def _tail(runs: Sequence[Run], skip: int) -> list[Run]:
    """What follows the first `skip` slots."""
    out: list[Run] = []
    for low, high in runs:
        if skip < high - low:
            out.append((low + max(0, skip), high))
        skip -= high - low
    return out


def _last(runs: Sequence[Run], count: int) -> list[Run]:
    """The last `count` slots."""
    return _tail(runs, sum(high - low for low, high in runs) - count)

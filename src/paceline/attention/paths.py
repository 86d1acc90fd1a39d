"""Which slots each row sees, as runs in the order of its path: the form in which attention needs no mask."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from paceline.core.batch import Segment

Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Paths:
    """Visible slots of every row.

    Args:
        first: runs of row r are `first[r] .. first[r + 1]`.
        runs: half-open slot ranges, two numbers each.
        longest: most slots that a row sees.
    """

    first: array[int]
    runs: array[int]
    longest: int


def paths(segments: Sequence[Segment], positions: Sequence[int], window: int | None) -> Paths | None:
    """The paths of all rows, or `None` where a window meets positions that do not count the keys before them."""
    first: list[int] = [0]
    bounds: list[int] = []
    longest = row = 0
    for segment in segments:
        for own, count, rows in _rows(segment):
            if window is not None and count > window:
                if any(count != position + 1 for position in positions[row : row + rows]):
                    return None
                own, count = _last(own, window), window
            for _ in range(rows):
                bounds.extend(own)
                first.append(len(bounds) // 2)
            longest, row = max(longest, count), row + rows
    return Paths(array("q", first), array("q", bounds), longest)


def _rows(segment: Segment) -> Iterator[tuple[Sequence[int], int, int]]:
    """Runs of the rows of a segment, bounds one after the other; how many slots they hold; and how many rows in turn have them."""
    context = segment.memory.length
    held = list(segment.memory.runs(context + segment.span))
    if segment.canvas is not None:
        yield _bounds(held), context + segment.span, segment.rows
    elif segment.tree is not None:
        yield from _branches(_bounds(_head(held, context)), context, _tail(held, context), segment.parents)
    elif segment.mask is None and segment.offsets is None:
        if len(held) == 1:
            low = held[0][0]
            for stop in range(context + 1, context + segment.rows + 1):
                yield (low, low + stop), stop, 1
        else:
            for stop in range(context + 1, context + segment.rows + 1):
                yield _bounds(_head(held, stop)), stop, 1
    else:
        yield from _masked(segment, _head(held, context), _tail(held, context))


def _branches(
    base: tuple[int, ...], context: int, scratch: Sequence[Run], parents: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Rows that each see what their parent sees and themselves.

    Args:
        base: runs of the `context` slots that all rows see.
        scratch: runs that the rows are written to.
    """
    seen: list[tuple[tuple[int, ...], int]] = []
    slots = [slot for low, high in scratch for slot in range(low, high)]
    for slot, parent in zip(slots, parents, strict=True):
        before, count = seen[parent] if parent >= 0 else (base, context)
        own = (*before[:-1], slot + 1) if before and before[-1] == slot else (*before, slot, slot + 1)
        seen.append((own, count + 1))
        yield own, count + 1, 1


def _masked(segment: Segment, base: list[Run], scratch: list[Run]) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Rows that see the runs of the context and, of the scratch, what a mask or offsets show."""
    if segment.mask is None:
        offsets = range(segment.rows) if segment.offsets is None else segment.offsets
        seen = [[(at, at + 1) for at in offsets[: row + 1]] for row in range(segment.rows)]
    else:
        seen = _stretches(segment.mask)
    for stretches in seen:
        own = _joined(base, [run for low, high in stretches for run in _head(_tail(scratch, low), high - low)])
        yield _bounds(own), sum(high - low for low, high in own), 1


def _bounds(runs: Sequence[Run]) -> tuple[int, ...]:
    return tuple(bound for run in runs for bound in run)


def _stretches(mask: Bool[Tensor, "rows span"]) -> list[list[Run]]:
    """Stretches of visible columns of each row, as half-open ranges."""
    edges = np.diff(mask.cpu().numpy().view(np.int8), axis=1, prepend=0, append=0)
    rows, columns = edges.nonzero()
    seen: list[list[Run]] = [[] for _ in range(len(mask))]
    for row, low, high in zip(rows[::2].tolist(), columns[::2].tolist(), columns[1::2].tolist(), strict=True):
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


def _last(bounds: Sequence[int], count: int) -> tuple[int, ...]:
    """Bounds of the last `count` slots."""
    runs = list(zip(bounds[::2], bounds[1::2], strict=True))
    return _bounds(_tail(runs, sum(high - low for low, high in runs) - count))

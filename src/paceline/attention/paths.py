"""Which slots each row sees, as runs in the order of its path: the form in which attention needs no mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.batch import Segment

Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Paths:
    """Visible slots of every row.

    Args:
        first: runs of row r are `first[r] .. first[r + 1]`.
        runs: half-open slot ranges.
        visits: keys seen, over all rows: the work of one head.
        work: room for the scores of the longest row.
    """

    first: Int[Tensor, " bounds"]
    runs: Int[Tensor, "runs 2"]
    visits: int
    work: Float[Tensor, " longest"]


def paths(segments: Sequence[Segment], positions: Sequence[int], window: int | None) -> Paths | None:
    """The paths of all rows, or `None` where a window meets positions that do not count the keys before them."""
    first, runs = [0], []
    visits = longest = row = 0
    for segment in segments:
        for own in _rows(segment):
            count = sum(high - low for low, high in own)
            if window is not None and count > window:
                if count != positions[row] + 1:
                    return None
                own, count = _last(own, window), window
            runs.extend(own)
            first.append(len(runs))
            visits, longest, row = visits + count, max(longest, count), row + 1
    return Paths(torch.tensor(first), torch.tensor(runs), visits, torch.empty(longest))


def _rows(segment: Segment) -> list[list[Run]]:
    """Runs of each row of a segment."""
    context = segment.memory.length
    held = list(segment.memory.runs(context + segment.span))
    if segment.mask is None and segment.offsets is None:
        return [_head(held, context + row + 1) for row in range(segment.rows)]
    base = _head(held, context)
    scratch = [slot for low, high in _tail(held, context) for slot in range(low, high)]
    offsets = range(segment.rows) if segment.offsets is None else segment.offsets
    if segment.mask is None:
        seen = [list(offsets[: row + 1]) for row in range(segment.rows)]
    else:
        seen = [[at for at, visible in enumerate(line) if visible] for line in segment.mask.tolist()]
    return [_append(base, [scratch[column] for column in columns]) for columns in seen]


def _append(base: list[Run], slots: list[int]) -> list[Run]:
    """Single slots behind runs, adjacent ones merged."""
    out = list(base)
    for slot in slots:
        if out and out[-1][1] == slot:
            out[-1] = (out[-1][0], slot + 1)
        else:
            out.append((slot, slot + 1))
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

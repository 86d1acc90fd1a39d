"""Lists of physical runs: half-open slot ranges that stand for consecutive logical slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Run = tuple[int, int]


def size(runs: Iterable[Run]) -> int:
    """Logical slots the runs hold."""
    return sum(high - low for low, high in runs)


def cut(runs: Iterable[Run], start: int, stop: int) -> list[Run]:
    """The runs of logical slots `start..stop`."""
    found: list[Run] = []
    at = 0
    for low, high in runs:
        if at >= stop:
            break
        behind = at + high - low
        first, last = max(start, at), min(stop, behind)
        if first < last:
            found.append((low + first - at, low + last - at))
        at = behind
    return found


def append(runs: list[Run], more: Iterable[Run]) -> None:
    """Append runs in place, merging what is adjacent."""
    for low, high in more:
        if runs and runs[-1][1] == low:
            runs[-1] = (runs[-1][0], high)
        elif low < high:
            runs.append((low, high))


def paired(left: list[Run], right: list[Run]) -> Iterator[tuple[int, int, int]]:
    """Walk two run lists of equal size in step: pieces (left start, right start, slots) contiguous in both."""
    at = offset = 0
    for low, high in left:
        while low < high:
            start, stop = right[at]
            count = min(high - low, stop - start - offset)
            yield low, start + offset, count
            low += count
            offset += count
            if start + offset == stop:
                at, offset = at + 1, 0

"""Extents of free slots: best fit, growth in place, coalescing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from paceline.core.errors import PacelineError


class OutOfSlots(PacelineError):
    """No slots are left right now; releasing or preempting a sequence helps. Nothing has changed."""


class OwnershipError(PacelineError):
    """A slot was freed twice, or used by somebody who does not hold it: a bug in the caller."""


class ExtentAllocator:
    """Free half-open ranges of `0..size`, sorted, disjoint and never adjacent to each other.

    The number of extents stays small (about one per live or cached sequence), so searches are linear.

    Args:
        size: slots altogether.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._starts: list[int] = [0] if size else []
        self._stops: list[int] = [size] if size else []

    def extents(self) -> list[tuple[int, int]]:
        """Free ranges in order."""
        return list(zip(self._starts, self._stops, strict=True))

    @property
    def largest(self) -> int:
        """Size of the largest free extent."""
        return max((stop - start for start, stop in zip(self._starts, self._stops, strict=True)), default=0)

    def take(self, least: int, wish: int) -> tuple[int, int] | None:
        """Take one contiguous range of at least `least` slots and at most `wish`.

        Best fit for the whole wish; where nothing holds it, the largest extent that holds `least`.

        Returns:
            The range, or `None` if no extent holds `least`.
        """
        best = largest = -1
        for at, (start, stop) in enumerate(zip(self._starts, self._stops, strict=True)):
            room = stop - start
            if room >= wish and (best < 0 or room < self._stops[best] - self._starts[best]):
                best = at
            if room >= least and (largest < 0 or room > self._stops[largest] - self._starts[largest]):
                largest = at
        chosen = best if best >= 0 else largest
        if chosen < 0:
            return None
        start = self._starts[chosen]
        return start, start + self._cut(chosen, wish)

    def extend(self, stop: int, least: int, wish: int) -> int:
        """Take slots that directly follow a held range.

        Args:
            stop: end of the held range.
            least: fewest slots worth taking.
            wish: most slots to take.

        Returns:
            How many were taken: 0, or `least` to `wish`.
        """
        at = bisect_left(self._starts, stop)
        if at == len(self._starts) or self._starts[at] != stop or self._stops[at] - stop < least:
            return 0
        return self._cut(at, wish)

    def give(self, start: int, stop: int) -> None:
        """Return a range, merging it with free neighbours.

        Raises:
            OwnershipError: if part of it is free already or out of bounds.
        """
        if start >= stop:
            return
        at = bisect_right(self._starts, start)
        before = self._stops[at - 1] if at else 0
        after = self._starts[at] if at < len(self._starts) else self.size
        if start < before or stop > after:
            raise OwnershipError(f"slots {start}..{stop} are freed twice or out of bounds")
        joins_left = at > 0 and before == start
        joins_right = at < len(self._starts) and after == stop
        if joins_left and joins_right:
            self._stops[at - 1] = self._stops[at]
            del self._starts[at], self._stops[at]
        elif joins_left:
            self._stops[at - 1] = stop
        elif joins_right:
            self._starts[at] = start
        else:
            self._starts.insert(at, start)
            self._stops.insert(at, stop)
        self.free += stop - start

    def _cut(self, at: int, wish: int) -> int:
        """Take up to `wish` slots from the front of an extent."""
        taken = min(wish, self._stops[at] - self._starts[at])
        self._starts[at] += taken
        if self._starts[at] == self._stops[at]:
            del self._starts[at], self._stops[at]
        self.free -= taken
        return taken

"""Who holds which slot: a count of holders per slot; a slot without holders is free."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from paceline.memory.allocator import ExtentAllocator, OwnershipError
from paceline.memory.runs import Run


class SlotBook:
    """Holders per slot. Holders are sequences and the prefix cache; a slot with one holder may be written by it.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self.extents = ExtentAllocator(slots)
        self.holders = np.zeros(slots, dtype=np.int32)
        self.cached = np.zeros(slots, dtype=bool)
        self.evictable = 0  # slots that only the prefix cache holds

    @property
    def free(self) -> int:
        """Slots nobody holds."""
        return self.extents.free

    def take(self, least: int, wish: int) -> Run | None:
        """Hold a contiguous range of `least` to `wish` free slots; `None` if there is none."""
        run = self.extents.take(least, wish)
        if run is not None:
            self.holders[slice(*run)] = 1
        return run

    def extend(self, stop: int, least: int, wish: int) -> int:
        """Hold `least` to `wish` free slots from `stop` on; returns how many, 0 if fewer than `least` are free there."""
        taken = self.extents.extend(stop, least, wish)
        self.holders[stop : stop + taken] = 1
        return taken

    def retain(self, runs: Iterable[Run], cache: bool = False) -> None:
        """Add a holder to held slots.

        Args:
            cache: whether the holder is the prefix cache.

        Raises:
            OwnershipError: if a slot is free, or the cache holds it already.
        """
        for low, high in runs:
            if (self.holders[low:high] < 1).any() or (cache and self.cached[low:high].any()):
                raise OwnershipError(f"slots {low}..{high} cannot be shared: some are free or cached already")
            before = self._evictable_in(low, high)
            self.holders[low:high] += 1
            if cache:
                self.cached[low:high] = True
            self.evictable += self._evictable_in(low, high) - before

    def release(self, runs: Iterable[Run], cache: bool = False) -> None:
        """Take a holder away; slots without holders become free.

        Args:
            cache: whether the holder is the prefix cache.

        Raises:
            OwnershipError: if a slot is free already, or the cache does not hold it.
        """
        for low, high in runs:
            if (self.holders[low:high] < 1).any() or (cache and not self.cached[low:high].all()):
                raise OwnershipError(f"slots {low}..{high} are released twice or by somebody who does not hold them")
            before = self._evictable_in(low, high)
            self.holders[low:high] -= 1
            if cache:
                self.cached[low:high] = False
            self.evictable += self._evictable_in(low, high) - before
            for start, stop in _stretches(self.holders[low:high] == 0):
                self.extents.give(low + start, low + stop)

    def alone_from(self, runs: list[Run], stop: int) -> int:
        """Smallest logical slot from which on, up to `stop`, every slot of a sequence has a single holder."""
        at = sum(high - low for low, high in runs)
        for low, high in reversed(runs):
            at -= high - low
            if at >= stop:
                continue
            shared = np.flatnonzero(self.holders[low : min(high, low + stop - at)] > 1)
            if len(shared):
                return at + int(shared[-1]) + 1
        return 0

    def _evictable_in(self, low: int, high: int) -> int:
        return int((self.cached[low:high] & (self.holders[low:high] == 1)).sum())


def _stretches(flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[Run]:
    """Ranges of consecutive true entries."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))

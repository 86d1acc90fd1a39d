"""One sequence's slots: committed tokens, scratch rows behind them, and headroom to grow into."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from paceline.core.errors import UsageError
from paceline.memory import runs as spans
from paceline.memory.allocator import OwnershipError
from paceline.memory.cross import CrossMemory
from paceline.memory.placement import SPARE, grow
from paceline.memory.pool import KVSnapshot
from paceline.memory.runs import Run

if TYPE_CHECKING:
    from paceline.memory.slots import SlotMemory


class SequenceMemory:
    """Logical slots `0..capacity` of one sequence, over physical runs; a `core.batch.MemoryView`.

    `0..length` is committed, `length..live` is scratch, `live..capacity` is headroom, which others may reclaim. Slots below `shared`
    may have other holders and are never written. Made by `SlotMemory.admit`, `SlotMemory.restore` and `fork`.

    In an encoder-decoder `cross` is the encoded source read beside the slots; it goes with the sequence, and commits do not touch it.
    """

    def __init__(self, memory: SlotMemory, held: list[Run], length: int, promised: int, namespace: Hashable) -> None:
        self.memory, self.namespace = memory, namespace
        self.held = held
        self.length = self.live = self.shared = self.capacity = length
        self.promised = promised
        self.released = False
        self.cross: CrossMemory | None = None

    @property
    def headroom(self) -> int:
        """Slots held beyond what is committed or scratch."""
        return self.capacity - self.live

    def reserve(self, rows: int) -> None:
        """Make sure that logical slots `length..length + rows` exist. Earlier scratch rows keep their contents.

        Raises:
            OutOfSlots: if they cannot be had; nothing changes.
        """
        self._check()
        end = self.length + rows
        if end > self.capacity:
            own = end - self.shared
            grow(self.memory, self, end, max(self.promised, end + max(SPARE, own // 4)))
        self._account(live=max(self.live, end))

    def runs(self, stop: int) -> list[Run]:
        """Physical half-open ranges of logical slots `0..stop`, adjacent ones merged.

        Raises:
            OwnershipError: if fewer slots are held.
        """
        if stop > self.capacity:
            raise OwnershipError(f"logical slots ..{stop} asked for, {self.capacity} held; reserve the rows first")
        return spans.cut(self.held, 0, stop)

    def slot(self, logical: int) -> int:
        """Physical slot of a logical one.

        Raises:
            OwnershipError: if it is not held.
        """
        found = spans.cut(self.held, logical, logical + 1)
        if not found:
            raise OwnershipError(f"logical slot {logical} asked for, {self.capacity} held; reserve the rows first")
        return found[0][0]

    def commit(self, rows: Sequence[int]) -> None:
        """Keep some of the scratch rows, dropping the rest; kept rows are moved together behind the committed ones.

        Args:
            rows: offsets from `length` of the rows to keep, strictly increasing: `range(k)` for a prefill of k rows, `[0, 2, 5]` for
                the root, node 2 and node 5 of a tree.

        Raises:
            UsageError: if they are not increasing, or not reserved.
        """
        self._check()
        count = len(rows)
        scratch = self.live - self.length
        if count and (rows[0] < 0 or rows[-1] >= scratch or any(a >= b for a, b in pairwise(rows))):
            raise UsageError(f"commit of rows {list(rows)}: must be strictly increasing within the {scratch} reserved")
        if count and rows[-1] != count - 1:  # otherwise all kept rows lie where they belong
            start = next(at for at, row in enumerate(rows) if at != row)
            source: list[Run] = []
            for row in rows[start:]:
                spans.append(source, [(self.length + row, self.length + row + 1)])
            physical = [run for low, high in source for run in spans.cut(self.held, low, high)]
            self.memory.pool.move(physical, spans.cut(self.held, self.length + start, self.length + count))
        self.length += count
        self._account(live=self.length)

    def truncate(self, length: int) -> None:
        """Forget committed slots from `length` on, and all scratch.

        Raises:
            UsageError: if fewer are committed.
        """
        self._check()
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot truncate to {length} slots: {self.length} are committed")
        capacity = self.capacity
        if length < self.shared:  # slots that others read must not be written again: drop them, keep what is behind as headroom
            self.memory.book.release(spans.cut(self.held, length, self.shared))
            kept = spans.cut(self.held, 0, length)
            spans.append(kept, spans.cut(self.held, self.shared, capacity))
            capacity -= self.shared - length
            self.held, self.shared = kept, length
        self.length = length
        self._account(live=length, capacity=capacity)

    def fork(self) -> SequenceMemory:
        """A second sequence with the same committed slots, shared. Both write only behind them."""
        self._check()
        common = self.runs(self.length)
        self.memory.book.retain(common)
        self.shared = self.length
        twin = self.memory.adopt(SequenceMemory(self.memory, common, self.length, self.length, self.namespace))
        twin.cross = None if self.cross is None else self.cross.retain()
        return twin

    def snapshot(self) -> KVSnapshot:
        """A copy of the committed keys and values, independent of the pools; `SlotMemory.restore` brings it back."""
        self._check()
        return self.memory.pool.read(self.runs(self.length))

    def bytes(self) -> int:
        """Bytes of the committed slots, shared ones included."""
        return self.length * self.memory.bytes_per_slot

    def gain(self, runs: list[Run]) -> None:
        """Placement only: append freshly taken runs."""
        spans.append(self.held, runs)
        self._account(capacity=self.capacity + spans.size(runs))

    def settle(self, logical: int, run: Run) -> None:
        """Placement only: put everything from a logical slot on into a freshly taken run, copying what is live."""
        low, high = run
        self.memory.pool.move(spans.cut(self.held, logical, self.live), [(low, low + self.live - logical)])
        self.memory.book.release(spans.cut(self.held, logical, self.capacity))
        self.held = spans.cut(self.held, 0, logical)
        spans.append(self.held, [run])
        self.shared = min(self.shared, logical)
        self._account(capacity=logical + high - low)

    def shed(self) -> int:
        """Placement only: give the headroom back; returns its size."""
        given = self.headroom
        self.memory.book.release(spans.cut(self.held, self.live, self.capacity))
        self.held = spans.cut(self.held, 0, self.live)
        self._account(capacity=self.live)
        return given

    def close(self) -> None:
        """`SlotMemory.release` only: drop every hold."""
        self._check()
        self.memory.book.release(self.held)
        self.memory.account(self, -1)
        if self.cross is not None:
            self.cross.release()
            self.cross = None
        self.held, self.released = [], True
        self.length = self.live = self.shared = self.capacity = self.promised = 0

    def _account(self, live: int | None = None, capacity: int | None = None) -> None:
        """Change the bounds; the memory's totals follow."""
        self.memory.account(self, -1)
        self.live = self.live if live is None else live
        self.capacity = self.capacity if capacity is None else capacity
        self.memory.account(self, +1)

    def _check(self) -> None:
        if self.released:
            raise OwnershipError("this sequence's memory has been released; admit it again")

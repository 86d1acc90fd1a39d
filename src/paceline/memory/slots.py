"""Slot memory: the pools of one cache, and every sequence and cached prefix that holds slots in them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from paceline.core.errors import UsageError
from paceline.memory import runs as spans
from paceline.memory.allocator import OutOfSlots, OwnershipError
from paceline.memory.holders import SlotBook
from paceline.memory.ledger import Ledger
from paceline.memory.pool import KVLayout, KVPool, KVSnapshot
from paceline.memory.radix import RadixCache
from paceline.memory.sequence import SequenceMemory

__all__ = ["KVLayout", "KVSnapshot", "OutOfSlots", "OwnershipError", "SlotMemory"]


class SlotMemory:
    """Token slots for one set of weights and one cache. Several memories on the same weights are separate objects.

    A slot is free, or held by sequences, or by the prefix cache, or by both; only a slot with a single holder is ever written.

    Args:
        layout: what a slot holds.
        slots: how many there are.
        ledger: where bytes are booked: the pools under `category`, what is in use of them under `{category}_used`.
        category: of the ledger.
        prefix_cache: whether released sequences may leave their tokens behind for others.
        contiguous: copy a shared prefix where sharing would split a sequence into several runs.

    Raises:
        UsageError: for fewer than one slot.
    """

    def __init__(
        self,
        layout: KVLayout,
        slots: int,
        ledger: Ledger | None = None,
        category: str = "kv",
        prefix_cache: bool = True,
        contiguous: bool = False,
    ) -> None:
        if slots < 1:
            raise UsageError(f"a KV memory of {slots} slots; at least 1 is needed")
        self.layout, self.total_slots, self.category, self.contiguous = layout, slots, category, contiguous
        self.bytes_per_slot = layout.bytes_per_slot
        self.ledger = ledger if ledger is not None else Ledger()
        self.pool = KVPool(layout, slots)
        self.keys, self.values, self.trash = self.pool.keys, self.pool.values, self.pool.trash
        self.ledger.add(category, self.pool.bytes)
        self.ledger.part(f"{category}_used")
        self._booked = 0
        self._prefix_cache = prefix_cache
        self._start()

    def _start(self) -> None:
        self.book = SlotBook(self.total_slots)
        self.cache = RadixCache(self.book) if self._prefix_cache else None
        self.sequences: set[SequenceMemory] = set()
        self.headroom = 0  # slots held by sequences beyond what they use
        self.pledged = 0  # slots promised to sequences at admission and not used yet
        self._book_use()

    @property
    def free_slots(self) -> int:
        """Slots without contents: free ones, and headroom, which is given up on demand."""
        return self.book.free + self.headroom

    @property
    def evictable_slots(self) -> int:
        """Slots that only the prefix cache holds."""
        return self.book.evictable

    def can_admit(self, tokens: int) -> bool:
        """Whether that many tokens fit beside what running sequences hold and were promised."""
        return self.free_slots + self.evictable_slots - self.pledged >= tokens

    def admit(self, ids: Sequence[int], reserve: int = 0, namespace: Hashable = None) -> SequenceMemory:
        """A new sequence that begins with the longest cached prefix of `ids[:-1]`; its `length` says how long that is.

        Room for `len(ids) + reserve` tokens is promised, and held in one run where possible.

        Args:
            ids: tokens of the sequence so far; the last one is never taken from the cache, since its logits are wanted.
            reserve: tokens it is expected to grow by.
            namespace: scope of prefix sharing.

        Raises:
            OutOfSlots: if `ids` do not fit now; nothing changes.
        """
        prefix = self.cache.match(ids[:-1], namespace) if self.cache is not None else []
        length = spans.size(prefix)
        self.book.retain(prefix)
        sequence = self.adopt(SequenceMemory(self, prefix, length, len(ids) + reserve, namespace))
        try:
            sequence.reserve(len(ids) - length)
        except OutOfSlots:
            self.release(sequence)
            raise
        sequence.truncate(length)
        return sequence

    def restore(self, snapshot: KVSnapshot, reserve: int = 0, namespace: Hashable = None) -> SequenceMemory:
        """A new sequence with the contents of a snapshot, from this memory or another of the same layout.

        Raises:
            UsageError: if the layouts differ.
            OutOfSlots: if it does not fit now; nothing changes.
        """
        sequence = self.adopt(SequenceMemory(self, [], 0, snapshot.length + reserve, namespace))
        try:
            sequence.reserve(snapshot.length)
            self.pool.write(sequence.runs(snapshot.length), snapshot)
        except (OutOfSlots, UsageError):
            self.release(sequence)
            raise
        sequence.commit(range(snapshot.length))
        return sequence

    def release(self, sequence: SequenceMemory, ids: Sequence[int] | None = None) -> None:
        """End a sequence's memory.

        Args:
            ids: its committed tokens, one per logical slot: they stay behind as a reusable prefix until evicted. `None` frees the slots.

        Raises:
            UsageError: if `ids` are not as many as there are committed slots.
            OwnershipError: if it was released before or belongs to another memory.
        """
        if sequence not in self.sequences:
            raise OwnershipError("this sequence does not live in this memory, or was released before")
        if ids is not None and len(ids) != sequence.length:
            raise UsageError(f"release: {len(ids)} ids for {sequence.length} committed slots; give exactly the committed tokens")
        if ids is not None and self.cache is not None:
            self.cache.insert(ids, sequence.runs(sequence.length), sequence.namespace)
        self.sequences.remove(sequence)
        sequence.close()
        self._book_use()

    def evict(self, slots: int) -> int:
        """Forget least recently used cached prefixes until that many slots became free or none is left; returns how many."""
        freed = self.cache.evict(slots) if self.cache is not None else 0
        self._book_use()
        return freed

    def reset(self) -> None:
        """Release every sequence and forget the prefix cache."""
        for sequence in list(self.sequences):
            self.release(sequence)
        self._start()

    def reclaim_headroom(self, slots: int, keep: SequenceMemory) -> None:
        """Take headroom from sequences other than `keep`, the largest first, until that many slots are free again."""
        for sequence in sorted(self.sequences - {keep}, key=lambda sequence: -sequence.headroom):
            if slots <= 0:
                return
            slots -= sequence.shed()

    def adopt(self, sequence: SequenceMemory) -> SequenceMemory:
        """Take a new sequence into the books."""
        self.sequences.add(sequence)
        self.account(sequence, +1)
        return sequence

    def account(self, sequence: SequenceMemory, sign: int) -> None:
        """Add (+1) or take away (-1) a sequence's share of the totals."""
        self.headroom += sign * sequence.headroom
        self.pledged += sign * max(0, sequence.promised - sequence.live)
        if sign > 0:
            self._book_use()

    def _book_use(self) -> None:
        used = (self.total_slots - self.free_slots) * self.bytes_per_slot
        if used != self._booked:
            self.ledger.add(f"{self.category}_used", used - self._booked)
            self._booked = used

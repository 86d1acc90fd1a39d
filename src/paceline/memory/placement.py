"""Where a growing sequence gets its slots: in place, moved to a larger extent, or in one more run, in this order of preference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.memory import runs as spans
from paceline.memory.allocator import OutOfSlots

if TYPE_CHECKING:
    from paceline.memory.sequence import SequenceMemory
    from paceline.memory.slots import SlotMemory

SPARE = 16  # slots taken beyond the need of a sequence, so that it does not come back every step


def grow(memory: SlotMemory, sequence: SequenceMemory, end: int, wish: int) -> None:
    """Give a sequence slots for logical `..end`, and for `..wish` where one run holds them.

    One run is worth a copy: attention then reads a view at every step instead of gathering the context. For the same reason prefix
    cache entries of up to twice the sequence's own size are given up for one.

    Raises:
        OutOfSlots: if it cannot be done with every unused slot, the prefix cache and other sequences' headroom; nothing changes.
    """
    missing = end - sequence.capacity
    others = memory.headroom - sequence.headroom
    if missing > memory.book.free + memory.book.evictable + others:
        raise OutOfSlots(
            f"{missing} more KV slots needed, {memory.free_slots} free and {memory.evictable_slots} evictable of {memory.total_slots}; "
            "release or preempt a sequence, or raise kv_tokens"
        )
    if _in_one_run(memory, sequence, end, wish):
        return
    allowed = 2 * (wish - sequence.shared)
    while allowed > 0 and memory.evictable_slots:
        allowed -= memory.evict(1)
        if _in_one_run(memory, sequence, end, wish):
            return
    memory.evict(missing - memory.book.free)
    if memory.book.free < missing:
        memory.reclaim_headroom(missing - memory.book.free, sequence)
    if not _in_one_run(memory, sequence, end, wish):
        _scatter(memory, sequence, missing)


def _in_one_run(memory: SlotMemory, sequence: SequenceMemory, end: int, wish: int) -> bool:
    """Grow without adding a run to the sequence's own part, if possible."""
    settled = 0 if memory.contiguous else memory.book.alone_from(sequence.held, sequence.capacity)
    scattered = len(spans.cut(sequence.held, settled, sequence.capacity)) > 1
    grown = (not scattered and _extend(memory, sequence, end, wish)) or _relocate(memory, sequence, settled, end, wish)
    return grown or (scattered and _extend(memory, sequence, end, wish))


def _extend(memory: SlotMemory, sequence: SequenceMemory, end: int, wish: int) -> bool:
    """Take the slots behind the last run."""
    if not sequence.held:
        return False
    stop = sequence.held[-1][1]
    taken = memory.book.extend(stop, end - sequence.capacity, wish - sequence.capacity)
    sequence.gain([(stop, stop + taken)])
    return taken > 0


def _relocate(memory: SlotMemory, sequence: SequenceMemory, settled: int, end: int, wish: int) -> bool:
    """Move everything from logical slot `settled` on into one larger run."""
    copied = sequence.live - settled
    slack = max(SPARE, copied // 8) if copied else 0  # a tight place would only be left again
    run = memory.book.take(end - settled + slack, max(wish, end + slack) - settled)
    if run is None:
        return False
    sequence.settle(settled, run)
    return True


def _scatter(memory: SlotMemory, sequence: SequenceMemory, missing: int) -> None:
    """Add runs, as few as the free extents allow."""
    while missing:
        run = memory.book.take(missing, missing) or memory.book.take(1, missing)
        assert run is not None, "the caller checked that enough slots are free"
        sequence.gain([run])
        missing -= run[1] - run[0]

"""What must hold of a slot memory after every operation, recomputed from scratch; and a world that drives one against a shadow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from paceline.memory import runs as spans
from paceline.memory.sequence import SequenceMemory
from paceline.memory.slots import KVLayout, SlotMemory

LAYOUT = KVLayout(((1, 2), (2, 1), (1, 2)), torch.float64, torch.device("cpu"))


def slots_of(runs: Sequence[tuple[int, int]]) -> list[int]:
    """Physical slots of a run list, in order."""
    return [slot for low, high in runs for slot in range(low, high)]


def check_books(memory: SlotMemory) -> None:
    """No slot leaked, none owned twice, all totals right."""
    total = memory.total_slots
    holders, cached = np.zeros(total, dtype=int), np.zeros(total, dtype=bool)
    headroom = pledged = 0
    for sequence in memory.sequences:
        slots = slots_of(sequence.held)
        assert len(set(slots)) == len(slots) == sequence.capacity, "a sequence holds a slot twice"
        assert 0 <= sequence.shared <= sequence.length <= sequence.live <= sequence.capacity
        assert all(a[1] != b[0] and a[0] < a[1] for a, b in pairwise(sequence.held)), "unmerged runs"
        holders[slots] += 1
        headroom += sequence.capacity - sequence.live
        pledged += max(0, sequence.promised - sequence.live)
    for entry in memory.cache.entries() if memory.cache is not None else []:
        slots = slots_of(entry)
        assert len(set(slots)) == len(slots), "a cache entry owns a slot twice"
        assert not cached[slots].any(), "two cache entries own one slot"
        holders[slots] += 1
        cached[slots] = True
    assert (holders == memory.book.holders).all(), "holder counts are wrong: a slot is leaked or owned twice"
    assert (cached == memory.book.cached).all()
    extents = memory.book.extents.extents()
    assert slots_of(extents) == np.flatnonzero(holders == 0).tolist(), "the free list is not what nobody holds"
    assert all(a[1] < b[0] for a, b in pairwise(extents)), "free neighbours were not merged"
    assert memory.book.free + int((holders > 0).sum()) == total
    assert memory.evictable_slots == int((cached & (holders == 1)).sum())
    assert (memory.headroom, memory.pledged) == (headroom, pledged)
    assert memory.free_slots == int((holders == 0).sum()) + headroom
    for sequence in memory.sequences:
        own = slots_of(spans.cut(sequence.held, sequence.shared, sequence.capacity))
        assert (holders[own] == 1).all(), "a slot that may be written has another holder"
    used = (total - memory.free_slots) * memory.bytes_per_slot
    assert memory.ledger.live["kv_used"] == used <= memory.ledger.peak["kv_used"]
    assert memory.ledger.total == memory.ledger.live["kv"] == memory.pool.bytes


@dataclass
class Shadow:
    """What a sequence should hold: its tokens, of which the first `memory.length` are committed."""

    memory: SequenceMemory
    ids: list[int]

    @property
    def committed(self) -> list[int]:
        return self.ids[: self.memory.length]


@dataclass
class World:
    """A memory, shadows of its sequences, and a number for every (namespace, prefix): the contents of a prefix's last slot."""

    memory: SlotMemory
    live: list[Shadow] = field(default_factory=list)
    numbers: dict[tuple[Hashable, tuple[int, ...]], int] = field(default_factory=dict)

    def number(self, namespace: Hashable, prefix: Sequence[int]) -> int:
        """Keys and values depend on the whole prefix; so does this number."""
        return self.numbers.setdefault((namespace, tuple(prefix)), len(self.numbers) + 1)

    def write(self, sequence: SequenceMemory, logical: int, number: int) -> None:
        """What a forward does to one row."""
        slot = sequence.slot(logical)
        for layer, (keys, values) in enumerate(zip(self.memory.keys, self.memory.values, strict=True)):
            keys[slot] = number + layer / 8
            values[slot] = -number - layer / 8

    def feed(self, shadow: Shadow, tokens: Sequence[int]) -> None:
        """Reserve, write and commit tokens one after the other."""
        memory = shadow.memory
        memory.reserve(len(tokens))
        del shadow.ids[memory.length :]
        for at, token in enumerate(tokens):
            shadow.ids.append(token)
            self.write(memory, memory.length + at, self.number(memory.namespace, shadow.ids))
        memory.commit(range(len(tokens)))

    def check(self) -> None:
        """Books, then contents."""
        check_books(self.memory)
        assert {shadow.memory for shadow in self.live} == self.memory.sequences
        for shadow in self.live:
            memory = shadow.memory
            slots = slots_of(memory.runs(memory.length))
            assert slots == [memory.slot(logical) for logical in range(memory.length)]
            expected = [self.number(memory.namespace, shadow.ids[: at + 1]) for at in range(memory.length)]
            for layer, (keys, values) in enumerate(zip(self.memory.keys, self.memory.values, strict=True)):
                wanted = torch.tensor(expected, dtype=torch.float64)[:, None, None] + layer / 8
                assert torch.equal(keys[slots], wanted.expand(keys[slots].shape)), "a committed key is lost or misplaced"
                assert torch.equal(values[slots], -wanted.expand(values[slots].shape)), "a committed value is lost or misplaced"

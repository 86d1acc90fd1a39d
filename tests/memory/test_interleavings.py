"""Random interleavings of everything that can happen to a slot memory, against a shadow; and controls that the check must catch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from slot_invariants import LAYOUT, Shadow, World

from paceline.memory.allocator import ExtentAllocator
from paceline.memory.holders import SlotBook
from paceline.memory.pool import KVPool
from paceline.memory.radix import RadixCache
from paceline.memory.sequence import SequenceMemory
from paceline.memory.slots import OutOfSlots, OwnershipError, SlotMemory

SLOTS = 48
MOST = 6  # sequences at a time; more would leave none of them room to do anything
TOKENS = st.integers(0, 1)
KEEP = st.sampled_from([True, True, False])
BUDGET = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)


class Interleavings(RuleBasedStateMachine):
    """Admit, draft, commit, truncate, fork, cancel, finish, preempt, evict, restore, in any order."""

    @initialize(prefix_cache=st.sampled_from([True, True, True, False]), contiguous=st.booleans())
    def start(self, prefix_cache: bool, contiguous: bool) -> None:
        self.world = World(SlotMemory(LAYOUT, SLOTS, prefix_cache=prefix_cache, contiguous=contiguous))
        for namespace in (None, "tenant"):
            self.admit([0, 0, 1, 1] * 2, 4, namespace, 8)

    def _pick(self, choice: int) -> Shadow:
        return self.world.live[choice % len(self.world.live)]

    def _drop(self, shadow: Shadow, keep: bool) -> None:
        self.world.memory.release(shadow.memory, shadow.committed if keep else None)
        self.world.live.remove(shadow)

    def _admit(self, ids: list[int], reserve: int, namespace: str | None) -> None:
        memory = self.world.memory
        room, before = memory.free_slots + memory.evictable_slots, (memory.book.holders.copy(), memory.free_slots)
        fits = memory.can_admit(len(ids))
        try:
            sequence = memory.admit(ids, reserve, namespace)
        except OutOfSlots:
            assert not fits, "turned away although there was room"
            assert room < len(ids)
            assert (memory.book.holders == before[0]).all()
            assert memory.free_slots == before[1]
            return
        assert sequence.length < len(ids)
        self.world.live.append(Shadow(sequence, ids))

    def _prefill(self, shadow: Shadow, rows: int, more: list[int]) -> None:
        """Up to `rows` of the prompt where it is not in memory yet, else new tokens."""
        rest = shadow.ids[shadow.memory.length :]
        with suppress(OutOfSlots):
            self.world.feed(shadow, rest[:rows] or more)
            shadow.ids.extend(rest[rows:])

    @precondition(lambda self: len(self.world.live) < MOST)
    @rule(
        ids=st.lists(TOKENS, min_size=8, max_size=24),
        reserve=st.integers(0, 20),
        namespace=st.sampled_from([None, "tenant"]),
        rows=st.integers(0, 24),
    )
    def admit(self, ids: list[int], reserve: int, namespace: str | None, rows: int) -> None:
        count = len(self.world.live)
        self._admit(ids, reserve, namespace)
        if rows and len(self.world.live) > count:
            self._prefill(self.world.live[-1], rows, [0])

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7), rows=st.integers(1, 12), more=st.lists(TOKENS, min_size=1, max_size=12))
    def prefill(self, choice: int, rows: int, more: list[int]) -> None:
        self._prefill(self._pick(choice), rows, more)

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7), data=st.data(), nodes=st.integers(1, 10), layers=st.booleans(), drop=st.booleans())
    def draft(self, choice: int, data: st.DataObject, nodes: int, layers: bool, drop: bool) -> None:
        """A random tree, written at once or in two forwards, of which a random path is kept."""
        shadow = self._pick(choice)
        memory, base = shadow.memory, shadow.committed
        parents = [-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, nodes)]
        paths: list[list[int]] = []
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if node else []), node])
        chosen = paths[data.draw(st.integers(0, nodes - 1))]
        tokens = [data.draw(TOKENS) for _ in parents]
        halves = [nodes // 2, nodes] if layers and nodes > 1 else [nodes]
        written = 0
        try:
            for rows in halves:
                memory.reserve(rows)
                for node in range(written, rows):
                    prefix = [*base, *(tokens[step] for step in paths[node])]
                    self.world.write(memory, memory.length + node, self.world.number(memory.namespace, prefix))
                written = rows
        except OutOfSlots:
            memory.truncate(memory.length)
            return
        shadow.ids = base
        if drop:
            memory.commit([])
        else:
            memory.commit(chosen)
            shadow.ids += [tokens[node] for node in chosen]

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7), back=st.integers(0, 9))
    def truncate(self, choice: int, back: int) -> None:
        shadow = self._pick(choice)
        shadow.memory.truncate(max(0, shadow.memory.length - back))
        shadow.ids = shadow.committed

    @precondition(lambda self: 0 < len(self.world.live) < MOST)
    @rule(choice=st.integers(0, 7))
    def fork(self, choice: int) -> None:
        shadow = self._pick(choice)
        self.world.live.append(Shadow(shadow.memory.fork(), shadow.committed))

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7), keep=KEEP)
    def end(self, choice: int, keep: bool) -> None:
        """Cancelled (slots freed) or finished (tokens stay as prefix)."""
        self._drop(self._pick(choice), keep)

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7), keep=KEEP)
    def preempt(self, choice: int, keep: bool) -> None:
        """Released, and admitted again at once to be recomputed."""
        shadow = self._pick(choice)
        ids, namespace = list(shadow.ids) or [0], shadow.memory.namespace
        self._drop(shadow, keep)
        self._admit(ids, 0, namespace)

    @rule(slots=st.integers(1, 40))
    def evict(self, slots: int) -> None:
        memory = self.world.memory
        available, free = memory.evictable_slots, memory.book.free
        freed = memory.evict(slots)
        assert freed >= min(slots, available)
        assert memory.book.free == free + freed

    @precondition(lambda self: self.world.live)
    @rule(choice=st.integers(0, 7))
    def move_out_and_in(self, choice: int) -> None:
        shadow = self._pick(choice)
        saved, ids, namespace = shadow.memory.snapshot(), shadow.committed, shadow.memory.namespace
        self._drop(shadow, keep=False)
        with suppress(OutOfSlots):
            self.world.live.append(Shadow(self.world.memory.restore(saved, namespace=namespace), ids))

    @invariant()
    def everything_in_its_place(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        """At the end everything comes back."""
        if hasattr(self, "world"):
            for shadow in list(self.world.live):
                self._drop(shadow, keep=True)
            memory = self.world.memory
            memory.evict(SLOTS)
            assert memory.book.extents.extents() == [(0, SLOTS)], "slots leaked"


def test_random_interleavings() -> None:
    run_state_machine_as_test(Interleavings, settings=BUDGET)


def _commit_off_by_one(real: Callable[..., None]) -> Callable[..., None]:
    def move(self: KVPool, source: list[tuple[int, int]], target: list[tuple[int, int]]) -> None:
        real(self, [(low - 1, high - 1) if low else (low, high) for low, high in source], target)

    return move


def _unshared_fork(real: Callable[..., SequenceMemory]) -> Callable[..., SequenceMemory]:
    def fork(self: SequenceMemory) -> SequenceMemory:
        child = real(self)
        child.shared = 0
        return child

    return fork


def _forgets_to_retain(real: Callable[..., None]) -> Callable[..., None]:
    return lambda self, runs, cache=False: real(self, runs, cache) if cache else None


def _leaks_one(real: Callable[..., None]) -> Callable[..., None]:
    return lambda self, start, stop: real(self, start, stop - 1)


def _frees_again(real: Callable[..., None]) -> Callable[..., None]:
    def release(self: SlotBook, runs: list[tuple[int, int]], cache: bool = False) -> None:
        real(self, runs, cache)
        real(self, runs, False)

    return release


def _one_namespace(real: Callable[..., list[tuple[int, int]]]) -> Callable[..., list[tuple[int, int]]]:
    return lambda self, ids, namespace=None: real(self, ids, None)


@pytest.mark.parametrize(
    ("owner", "name", "breaks"),
    [
        (KVPool, "move", _commit_off_by_one),
        (SequenceMemory, "fork", _unshared_fork),
        (SlotBook, "retain", _forgets_to_retain),
        (SlotBook, "release", _frees_again),
        (ExtentAllocator, "give", _leaks_one),
        (RadixCache, "match", _one_namespace),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_memories_are_caught(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, breaks: Callable[..., object]) -> None:
    """Negative controls: each fault must be found by the very machine that passes above."""
    monkeypatch.setattr(owner, name, breaks(getattr(owner, name)))
    with pytest.raises((AssertionError, OwnershipError, ExceptionGroup)):
        run_state_machine_as_test(
            Interleavings, settings=settings(BUDGET, max_examples=300, phases=[Phase.generate], report_multiple_bugs=False)
        )

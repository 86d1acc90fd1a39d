"""Random interleavings of everything a dense cache can be asked to do: every sequence keeps exactly its own tokens, in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import UsageError
from paceline.memory.allocator import OutOfSlots, OwnershipError
from paceline.memory.pool import KVLayout
from paceline.scheduling.dense.alignment import Alignment, Gaps, LeftPadded
from paceline.scheduling.dense.memory import DenseMemory
from paceline.scheduling.dense.row import DenseRow

LAYOUT = KVLayout(((1, 2), (2, 1)), torch.float64, torch.device("cpu"))
NAMES = st.integers(0, 4)
ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.sets(NAMES, min_size=1), st.integers(1, 4), st.integers(0, 255)),
    st.tuples(st.just("draft"), st.sets(NAMES, min_size=1), st.integers(1, 3), st.integers(0, 255)),
    st.tuples(st.sampled_from(["release", "fork", "truncate"]), NAMES, st.integers(0, 9), st.just(0)),
)


def tokens_of(row: DenseRow) -> list[float]:
    """The numbers that stand for its tokens, the same in every head of every layer."""
    snapshot = row.snapshot()
    planes = torch.cat([store.flatten(2).movedim(1, 2).reshape(-1, snapshot.length) for store in snapshot.stores])
    assert bool((planes == planes[0]).all())
    found: list[float] = planes[0].tolist()
    return found


class Model:
    """A dense memory beside lists of what its sequences should hold."""

    def __init__(self, alignment: Alignment) -> None:
        self.memory = DenseMemory(LAYOUT, 10_000, alignment)
        self.rows: dict[int, DenseRow] = {}
        self.committed: dict[int, list[float]] = {}
        self.scratch: dict[int, list[float]] = {}
        self.next = 1.0

    def row(self, name: int) -> DenseRow:
        if name not in self.rows:
            self.rows[name] = self.memory.admit((), reserve=4)
            self.committed[name], self.scratch[name] = [], []
        return self.rows[name]

    def write(self, names: set[int], count: int) -> None:
        """What a forward does: bring rows into line, write behind them, unequally many."""
        rows = [self.row(name) for name in sorted(names)]
        self.memory.arrange(rows, count)
        first = self.memory.end
        for at, (name, row) in enumerate(zip(sorted(names), rows, strict=True)):
            own = 1 + (at + count) % count
            row.write([(first, first + own)])
            for low, high in row.runs(row.live)[-1:]:
                for slot in range(high - own, high):
                    assert low <= slot
                    for pool in (*self.memory.keys, *self.memory.values):
                        pool[slot] = self.next
                    self.scratch[name].append(self.next)
                    self.next += 1
        self.memory.end = first + count

    def commit(self, names: set[int], bits: int) -> None:
        for name in names:
            kept = [at for at in range(len(self.scratch[name])) if bits >> at & 1]
            self.rows[name].commit(kept)
            self.committed[name] += [self.scratch[name][at] for at in kept]
            self.scratch[name] = []

    def check(self) -> None:
        for name, row in self.rows.items():
            assert row.length == len(self.committed[name])
            expected = self.committed[name] + self.scratch[name]
            assert row.live == len(expected)
            assert not expected or tokens_of(row) == expected
        assert self.memory.sequences == set(self.rows.values())
        assert self.memory.ledger.live["kv_used"] == sum(row.bytes() for row in self.rows.values())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([LeftPadded(), Gaps(0.25), Gaps(0.9)]), st.lists(ACTIONS, max_size=14))
def test_nothing_is_lost_or_mixed_up(alignment: Alignment, actions: list[tuple[str, object, int, int]]) -> None:
    model = Model(alignment)
    for kind, whom, count, bits in actions:
        if kind in ("step", "draft"):
            names: set[int] = whom  # type: ignore[assignment]
            model.write(names, count)
            if kind == "step":
                model.commit(names, bits)
        elif whom in model.rows:
            name = int(whom)  # type: ignore[call-overload]
            row = model.rows[name]
            if kind == "release":
                model.memory.release(row)
                del model.rows[name], model.committed[name], model.scratch[name]
            elif kind == "truncate":
                length = min(count, row.length)
                row.truncate(length)
                model.committed[name], model.scratch[name] = model.committed[name][:length], []
            elif 9 not in model.rows:
                model.rows[9] = row.fork()
                model.committed[9], model.scratch[9] = list(model.committed[name]), []
        model.check()


def test_misuse_is_refused() -> None:
    memory = DenseMemory(LAYOUT, 8, LeftPadded())
    row = memory.admit((1, 2, 3))
    with pytest.raises(OutOfSlots, match="raise kv_tokens"):
        memory.admit(range(9))
    with pytest.raises(OutOfSlots):
        row.reserve(9)
    memory.arrange([row], 2)
    row.write([(0, 2)])
    for rows in ([0, 2], [1, 0], [-1]):
        with pytest.raises(UsageError, match="strictly increasing"):
            row.commit(rows)
    row.commit([0, 1])
    with pytest.raises(UsageError, match="truncate"):
        row.truncate(3)
    with pytest.raises(OwnershipError):
        row.runs(3)
    memory.release(row)
    with pytest.raises(OwnershipError):
        memory.release(row)
    with pytest.raises(UsageError, match="at least 1"):
        DenseMemory(LAYOUT, 0, LeftPadded())

"""After every step: rows end together, positions count content, memory holds all tokens but the pending one, and holds the right ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_engines import DENSE, batching, make, noisy, prompts, target

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.request import Request
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.engine.runner import make_runner
from paceline.memory.ledger import Ledger
from paceline.memory.pool import KVSnapshot
from paceline.models.decoder import Decoder
from paceline.scheduling.dense.row import DenseRow

STEPS = 8


def prefill(decoder: Decoder, ids: list[int]) -> KVSnapshot:
    """Keys and values of a text read at once into token slots."""
    runner = make_runner(decoder, slots=len(ids) + 1, ledger=Ledger(), prefix_cache=False)
    memory = runner.memory.admit(ids)
    memory.reserve(len(ids))
    runner.forward(ForwardBatch(ids, range(len(ids)), [Segment(memory, len(ids))], ()))
    memory.commit(range(len(ids)))
    found: KVSnapshot = memory.snapshot()
    return found


def assert_holds(row: DenseRow, decoder: Decoder, ids: list[int]) -> None:
    held, fresh = row.snapshot(), prefill(decoder, ids)
    assert held.length == fresh.length == row.length
    for store, right in zip(held.stores, fresh.stores, strict=True):
        assert float((store - right).abs().max()) < 1e-10


def run(name: str, **options: object) -> tuple[LLM, Decoder]:
    base = target()
    draft = noisy(base, 0.2)
    llm = make(base, draft, batching(name, 3), **options)
    for prompt in prompts(6):
        llm.engine.submit(Request(tuple(prompt), max_tokens=14))
    return llm, draft


@pytest.mark.parametrize("name", DENSE)
def test_caches_equal_a_fresh_prefill(name: str) -> None:
    """The target's cache lacks the pending token only; the draft's one or two more."""
    llm, draft = run(name)
    runner, drafter = llm.engine.runner, llm.engine.drafter
    lags = set()
    for _ in range(STEPS):
        llm.engine.step()
        for active in llm.engine.scheduler.running:
            row, tokens = active.memory, active.sequence.tokens
            assert isinstance(row, DenseRow)
            if active.sequence.output:
                assert row.length == row.live == len(tokens) - 1  # I3
            if row.length:
                assert_holds(row, runner.decoder, tokens[: row.length])
            lane = drafter._lanes._lanes.get(active.sequence.uid)  # type: ignore[attr-defined]
            if lane is not None:
                lags.add(len(tokens) - lane.memory.length)
                assert_holds(lane.memory, draft, tokens[: lane.memory.length])
    usual = {1} if name == "rollback" else {1, 2}  # two behind a draft accepted whole, which a common rollback seldom lets happen
    assert usual <= lags


@pytest.mark.parametrize("name", DENSE)
def test_rows_stand_in_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I1 and I2 at every forward of target and draft, from the masks and positions that the network was given."""
    checked = 0

    def spy(self: DenseRunner, segment: Segment, row: DenseRow, columns: tuple[int, int], first: int, width: int) -> np.ndarray:
        nonlocal checked
        visible = visible_of(self, segment, row, columns, first, width)
        committed = [column for low, high in row.columns for column in range(low, high)][: row.length]
        last = visible[columns[1] - 1 - first]  # the last row of the segment: of a chain it sees everything
        seen = last.nonzero()[0].tolist()
        assert seen[: row.length] == committed
        if name != "gap" and row.length + segment.rows == row.live and committed:  # a step begins
            assert committed == list(range(first - row.length, first))  # padding + content = width
        counted = np.cumsum(last) - 1  # position of a column: content up to it, less one
        assert counted[columns[1] - 1] == row.live - 1
        checked += 1
        return visible

    visible_of = DenseRunner._visible
    monkeypatch.setattr(DenseRunner, "_visible", spy)
    positions_of = DenseRunner._positions

    def positions(self: DenseRunner, given: object, row: DenseRow, columns: tuple[int, int]) -> object:
        found = list(positions_of(self, given, row, columns))  # type: ignore[arg-type]
        assert found == list(range(row.live - len(found), row.live))
        return found

    monkeypatch.setattr(DenseRunner, "_positions", positions)
    llm, _ = run(name)
    for _ in range(STEPS):
        llm.engine.step()
    assert checked > 3 * STEPS


@pytest.mark.parametrize("name", DENSE)
def test_storage_is_a_rectangle(name: str) -> None:
    """Rows are equally far apart, inside their own columns, and what is not content is masked: garbage there changes nothing."""
    llm, _ = run(name)
    other, _ = run(name)
    for _ in range(STEPS):
        found, clean = ([(e.sequence.uid, e.tokens) for e in each.engine.step()] for each in (llm, other))
        assert found == clean
        memory = llm.engine.runner.dense  # type: ignore[attr-defined]
        assert sorted(row.index for row in memory.rows) == list(range(len(memory.rows)))
        content = torch.zeros(len(memory.keys[0]), dtype=torch.bool)
        for row in memory.rows:
            assert all(0 <= low < high <= memory.width for low, high in row.columns)
            for low, high in row.runs(row.live):
                assert not content[low:high].any()
                content[low:high] = True
        for pool in (*memory.keys, *memory.values):
            pool[~content] = 1e6

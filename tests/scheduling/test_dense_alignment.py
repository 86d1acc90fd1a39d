"""Alignment: the delta formula, rows that need no move, gaps and when they are closed, and what an engine copies."""

from __future__ import annotations

import pytest
from dense_engines import DENSE, batching, ids, make, noisy, prompts, target
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.request import Request
from paceline.engine.costs import costs
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.scheduling.dense.alignment import Gaps, LeftPadded, Standing, shifts, wasted
from paceline.scheduling.dense.memory import DenseMemory

rectangles = st.integers(1, 40).flatmap(
    lambda width: st.lists(st.tuples(st.integers(1, width), st.integers(1, 9)), min_size=1, max_size=6).map(lambda rows: (width, rows))
)


@given(rectangles)
def test_shifts_are_what_unpad_append_repad_does(case: tuple[int, list[tuple[int, int]]]) -> None:
    """The formula against doing it: strip the padding, append, pad to the widest."""
    width, rows = case
    content, gained = [held for held, _ in rows], [new for _, new in rows]
    padding = [width - held for held in content]
    unpadded = [["token"] * held + ["new"] * new for held, new in rows]
    widest = max(map(len, unpadded))
    repadded = [["pad"] * (widest - len(row)) + row for row in unpadded]
    moved = [row.index("token") - padded for row, padded in zip(repadded, padding, strict=True)]
    assert shifts(padding, content, gained) == moved
    found = LeftPadded().targets([Standing([(width - held, width + new)], held + new) for held, new in rows], width)
    assert found.end == widest
    assert [columns[0][0] - padded for columns, padded in zip(found.columns, padding, strict=True)] == moved
    assert {columns[-1][1] for columns in found.columns} == {widest}  # padding + content = width, for all rows


@given(st.integers(0, 20), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 9))
def test_equal_gains_move_nothing(spare: int, content: list[int], gained: int) -> None:
    width = max(content)
    assert set(shifts([width - held for held in content], content, [gained] * len(content))) == {0}
    rows = [Standing([(width - held, width + gained)], held + gained) for held in content]
    assert LeftPadded().targets(rows, width + spare).columns == [list(row.columns) for row in rows]


def test_ragged_ends_are_no_rectangle() -> None:
    with pytest.raises(ValueError, match="same one"):
        shifts([0, 0], [3, 4], [1, 1])


def test_gaps_are_closed_beyond_the_limit_only() -> None:
    full = Standing([(0, 12)], 12)
    holed = Standing([(2, 6), (9, 12)], 7)
    rows = [full, holed]
    assert wasted(rows, 12) == pytest.approx(3 / 22)
    kept = Gaps(0.25).targets(rows, 15)  # three columns behind were rejected by both: they are used again
    assert kept.end == 12
    assert kept.columns == [list(row.columns) for row in rows]
    closed = Gaps(0.1).targets(rows, 15)
    assert closed.columns == [[(0, 12)], [(5, 12)]]


def test_a_row_joins_gaps() -> None:
    inside, joining, longer = Standing([(0, 3), (5, 8)], 6), Standing([], 4), Standing([], 11)
    assert Gaps(0.5).targets([inside, joining], 8).columns == [[(0, 3), (5, 8)], [(4, 8)]]
    assert Gaps(0.5).targets([inside, longer], 8).columns == [[(5, 11)], [(0, 11)]]  # too long to stand behind the others


@pytest.fixture(scope="module")
def base() -> LLM:
    return target(eos=())


def memories(llm: LLM) -> list[DenseMemory]:
    """Of target and draft."""
    runners = (llm.engine.runner, llm.engine.drafter.runner)  # type: ignore[attr-defined]
    return [runner.dense for runner in runners if isinstance(runner, DenseRunner)]


@pytest.mark.parametrize("name", DENSE)
def test_equal_acceptance_copies_nothing(base: LLM, name: str) -> None:
    """A draft that is the target is accepted whole everywhere: prompts of unequal length, not one byte moved."""
    llm = make(base, noisy(base, 0.0), f"{name}:batch=5", "draft-model:length=4")
    ids(llm, [prompt for prompt in prompts(6) if len(prompt) > 1], 20)  # one token needs no prefill: its row would join later
    for memory in memories(llm):
        assert memory.traffic.alignments >= 4
        assert memory.traffic.free == memory.traffic.alignments
        assert memory.traffic.copied == 0


@pytest.mark.parametrize("name", ["eqspec", "gap"])
def test_a_row_by_itself_never_moves(base: LLM, name: str) -> None:
    """B = 1 needs no realignment, however unequal the acceptance of its steps."""
    llm = make(base, noisy(base, 0.25), f"{name}:batch=1", "draft-model:length=4")
    outputs = llm.generate([prompt for prompt in prompts(6) if len(prompt) > 1], None, 20, ignore_eos=True)
    assert len({run for output in outputs for run in output.stats.runs}) > 2
    for memory in memories(llm):
        assert memory.traffic.moved == memory.traffic.aside == 0


def test_who_copies_and_who_does_not(base: LLM) -> None:
    """With unequal acceptance realignment copies, a common rollback never, gaps seldom; rollback pays in steps."""
    copied, steps = {}, {}
    for name in DENSE:
        llm = make(base, noisy(base, 0.25), batching(name, 8))
        outputs = llm.generate(prompts(), None, 20, ignore_eos=True)
        copied[name] = memories(llm)[0].traffic.moved
        steps[name] = max(output.stats.forwards for output in outputs)
        found = costs(llm.engine)
        assert found.align > 0
        assert sum(found.shares().values()) == pytest.approx(1)
        assert min(found.draft, found.verify, found.other) > 0
    assert 0 < copied["gap"] < copied["eqspec"]
    assert steps["rollback"] > steps["eqspec"]


def test_gap_stays_within_its_waste(base: LLM) -> None:
    """Behind every alignment, no more is wasted than allowed; without a limit, more is."""
    seen = {}
    for waste in (0.25, 0.9):
        llm = make(base, noisy(base, 0.25), f"gap:batch=8,waste={waste}", "draft-model:length=5")
        memory, most = memories(llm)[0], 0.0
        align = memory._align

        def spy(rows: object, memory: DenseMemory = memory, align: object = align) -> None:
            nonlocal most
            align(rows)  # type: ignore[operator]
            most = max(most, wasted([row.standing for row in memory.rows], memory.end))

        memory._align = spy  # type: ignore[method-assign,assignment]
        ids(llm, prompts(), 24)
        seen[waste] = most
    assert 0 < seen[0.25] <= 0.25 < seen[0.9]


def test_finished_rows_leave_the_rectangle(base: LLM) -> None:
    """Memory of a finished row is free at once, and it is no longer computed for."""
    llm = make(base, noisy(base, 0.1), "eqspec:batch=4")
    for index, prompt in enumerate(prompts(8)[4:]):
        llm.engine.submit(Request(tuple(prompt), max_tokens=4 + 8 * index, ignore_eos=True))
    heights = []
    while not llm.engine.idle:
        llm.engine.step()
        running = llm.engine.scheduler.running
        memory = memories(llm)[0]
        assert len(memory.sequences) == len(memory.rows) == len(running)
        heights.append(len(running))
    assert heights[0] == 4
    assert {3, 2, 1} <= set(heights)
    for memory in memories(llm):
        assert not memory.sequences
        assert memory.ledger.live["kv_used"] == memory.ledger.live["draft_kv_used"] == 0
        assert memory.free_slots == memory.total_slots

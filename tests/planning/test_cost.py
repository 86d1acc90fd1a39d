"""The measured cost model: interpolation, monotonicity, and learning from steps."""

from __future__ import annotations

import pytest

from paceline.planning.cost import REFRESH, ForwardCost


def test_probes_at_the_first_question_and_interpolates() -> None:
    asked: list[int] = []

    def probe(rows: int) -> float:
        asked.append(rows)
        return float(rows)

    cost = ForwardCost(probe, sizes=(1, 2, 4, 8))
    assert asked == []
    assert [cost(rows) for rows in (1, 2, 3, 4, 6, 8)] == pytest.approx([1, 2, 3, 4, 6, 8])
    assert cost(12) == pytest.approx(12)
    assert asked == [1, 2, 4, 8] * 2


def test_a_noisy_probe_never_makes_more_rows_cheaper() -> None:
    times = {1: 5.0, 2: 3.0, 4: 4.0, 8: 3.5}
    cost = ForwardCost(times.__getitem__, sizes=(1, 2, 4, 8))
    table = [cost(rows) for rows in range(1, 9)]
    assert table == sorted(table)


def test_learns_a_slower_machine_and_shrugs_off_outliers() -> None:
    cost = ForwardCost(lambda rows: 1.0, sizes=(1, 2, 4))
    for _ in range(20 * REFRESH):
        cost.observe(1, 2.0)
    assert cost(1) == pytest.approx(2.0, rel=0.05)
    steady = ForwardCost(lambda rows: 1.0, sizes=(1, 2, 4))
    for step in range(REFRESH):
        steady.observe(1, 1000.0 if step == 3 else 1.0)
    assert steady(1) < 1.1


def test_a_disturbance_while_probing_is_outlasted() -> None:
    """Whatever slowed one pass down is gone in the next."""
    asked: list[int] = []

    def probe(rows: int) -> float:
        asked.append(rows)
        return 9.0 if 2 <= len(asked) <= 4 else float(rows)

    assert [ForwardCost(probe, sizes=(1, 2, 4, 8))(rows) for rows in (1, 2, 4, 8)] == pytest.approx([1, 2, 4, 8])


def test_steps_faster_than_thought_possible_correct_a_disturbed_probe() -> None:
    disturbed = True
    probes: list[int] = []

    def probe(rows: int) -> float:
        probes.append(rows)
        return 9.0 if disturbed and rows > 1 else 1.0

    cost = ForwardCost(probe, sizes=(1, 2, 4, 8))
    assert cost(4) / cost(1) == cost(8) / cost(1) == 9.0
    disturbed = False
    before = len(probes)
    for _ in range(4):
        cost.observe(4, 1.0)
        cost.observe(1, 1.0)
    assert cost(4) / cost(1) < 1.5
    assert cost(8) / cost(1) < 1.5, "larger sizes were probed on the same busy machine"
    for _ in range(3 * REFRESH):
        cost.observe(4, 1.0)
    assert len(probes) == before, "nothing is probed while somebody waits for tokens"


def test_steps_that_take_what_was_thought_probe_nothing() -> None:
    probes: list[int] = []

    def probe(rows: int) -> float:
        probes.append(rows)
        return 1.0

    cost = ForwardCost(probe, sizes=(1, 2))
    for step in range(10 * REFRESH):
        cost.observe(1 + step % 2, 0.8 + step % 3)
    assert len(probes) == 4

"""The measured cost model: interpolation, monotonicity, and learning from steps."""

from __future__ import annotations

import pytest

from paceline.planning.cost import REFRESH, ForwardCost


def test_probes_once_and_interpolates() -> None:
    asked: list[int] = []

    def probe(rows: int) -> float:
        asked.append(rows)
        return float(rows)

    cost = ForwardCost(probe, sizes=(1, 2, 4, 8))
    assert asked == []
    assert [cost(rows) for rows in (1, 2, 3, 4, 6, 8)] == pytest.approx([1, 2, 3, 4, 6, 8])
    assert cost(12) == pytest.approx(12)
    assert asked == [1, 2, 4, 8]


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

"""What DySpec learns from past steps, and its options: thresholds, acceptance, budgets by measured cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext
from paceline.drafting.dyspec import DySpec, DySpecConfig
from paceline.drafting.dyspec_learning import LEAST_THRESHOLD, MOST_THRESHOLD, AcceptanceCurve, BudgetTuner, Threshold
from paceline.planning.static_tree import AcceptanceTable


def test_threshold_follows_the_sizes_of_past_trees() -> None:
    threshold = Threshold(1 / 64)
    threshold.observe(16, 64)
    assert threshold.value == pytest.approx(0.5 / 64)
    for _ in range(100):
        threshold.observe(1, 64)
    assert threshold.value == LEAST_THRESHOLD
    for _ in range(100):
        threshold.observe(640, 64)
    assert threshold.value == MOST_THRESHOLD
    fixed = Threshold(0.1, adaptive=False)
    fixed.observe(1, 64)
    assert fixed.value == 0.1


def test_curve_starts_at_the_draft_and_learns_what_is_accepted() -> None:
    curve = AcceptanceCurve()
    assert [curve(share, 0) for share in (1.0, 0.3, 1e-9)] == pytest.approx([1.0, 0.3, 1e-9])
    for _ in range(200):
        curve.observe(0.02, 0, accepted=True)
        curve.observe(0.9, 0, accepted=False)
        curve.observe(0.02, 3, accepted=False)
    assert curve(0.02, 0) > 0.9
    assert curve(0.9, 0) < 0.05
    assert curve(0.02, 1) < 0.01
    assert all(0.0 <= curve(share / 100, rank) <= 1.0 for share in range(101) for rank in range(3))
    assert {row["later"] for row in curve.table()} == {0.0, 1.0}


def tuned(target: Callable[[int], float], draft: float, accepted: int, sequences: int = 1) -> list[int]:
    """Budgets chosen over 200 steps with trees of one good chain of four and fifty hopeless nodes."""
    tuner = BudgetTuner(target, lambda rows: draft)
    chosen = []
    for _ in range(200):
        nodes = tuner.choose(sequences, 54)
        chosen.append(nodes)
        parent = [-1, *range(4), *([0] * 50)][: nodes + 1]
        depth = [0, 1, 2, 3, 4, *([1] * 50)][: nodes + 1]
        estimates = [1.0, 0.9, 0.8, 0.7, 0.6, *([0.001] * 50)][: nodes + 1]
        tuner.observe(parent, depth, estimates, min(accepted, nodes))
    return chosen


def test_budget_follows_the_measured_cost() -> None:
    free, dear = tuned(lambda rows: 1.0, 0.0, 3), tuned(lambda rows: 1.0 + 0.05 * rows, 0.02, 3)
    assert free[-1] == 54
    assert dear[-1] == 4
    assert tuned(lambda rows: 1.0, 2.0, 3)[-1] == 0  # two seconds a draft forward cannot pay
    assert tuned(lambda rows: float(rows), 0.02, 0)[-1] == 0
    batched = tuned(lambda rows: max(1.0, rows / 8), 0.02, 3, sequences=8)
    assert batched[-1] == 0  # the batch alone fills what is free


def test_a_budget_of_zero_is_reconsidered() -> None:
    chosen = tuned(lambda rows: float(rows), 0.02, 0)
    assert 0 < sum(nodes > 0 for nodes in chosen[100:]) < 10


@pytest.mark.parametrize("text", ["dyspec:budget=-1", "dyspec:threshold=1", "dyspec:depth=-1", "dyspec:mode=wild", "dyspec:budget=some"])
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="dyspec.*" + text.split(":")[1].split("=")[0]):
        parse(text)[0].config()


def test_options_are_read() -> None:
    assert parse("dyspec:budget=auto,mode=budget,value=calibrated")[0].config() == DySpecConfig("auto", "budget", value="calibrated")
    assert parse("dyspec:budget=12")[0].config().budget == 12


def test_without_a_draft_model_it_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="--draft"):
        DySpec.build(DySpecConfig(), DraftContext(10, frozenset(), lambda rows: 1.0))


def test_acceptance_is_counted_by_depth_and_rank() -> None:
    tree = TokenTree((9, 1, 2, 3, 4), (-1, 0, 1, 0, 3))
    table = AcceptanceTable()
    table.observe(tree, Verdict((3,), (3, 7)))
    table.observe(tree, Verdict((1, 2), (1, 2, 7)))
    assert table.rates(by_depth=True) == ((0.5, 0.5), (0.5,))
    assert table.rates() == ((0.5, 0.5),)

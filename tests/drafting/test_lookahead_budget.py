"""How much of what Lookahead finds is sent: measured costs and chances, idleness, doubt, and the critical length."""

from __future__ import annotations

import pytest
from lookahead_games import cycle, drafted, lookahead, play

from paceline.core.rng import key
from paceline.drafting.lookahead import Lookahead
from paceline.drafting.lookahead.budget import Record, critical_length, worthwhile
from paceline.drafting.lookahead.select import Picked
from paceline.drafting.rest import REST


def test_measured_budget_sends_what_pays() -> None:
    free, dear = lookahead(budget="measured", rows_cost=0.0), lookahead(budget="measured", rows_cost=1.0)
    for drafter in (free, dear):
        play(drafter, [5], 60, cycle)
    assert len(drafted(free, [5])) == 13
    assert len(drafted(dear, [5])) == 1


def test_measured_budget_stops_on_text_that_cannot_be_drafted_and_comes_back() -> None:
    drafter = lookahead(budget="measured", rows_cost=0.2)
    drafter.rests = False  # questions are all that steps consist of here
    sizes = [len(tree) - 1 for tree in play(drafter, [1], 300, lambda tokens: key(1, len(tokens)) % 20)[1]]
    assert sum(sizes[:50]) > 0
    assert sum(sizes[-100:]) < 0.2 * 100
    for _ in range(3):
        _, trees = play(drafter, [103], 60, cycle)
    assert len(trees) < 20


@pytest.mark.parametrize(("rests", "budget", "rare"), [(True, "measured", True), (False, "measured", False), (True, "fixed", False)])
def test_a_sequence_that_nothing_is_accepted_for_is_looked_up_less_often(
    rests: bool, budget: str, rare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    find = Lookahead._find
    monkeypatch.setattr(Lookahead, "_find", lambda self, *args: asked.append(args) or find(self, *args))
    drafter = lookahead(budget=budget)
    drafter.rests = drafter.rests and rests
    play(drafter, [1], 20 * REST, lambda tokens: 1000 + len(tokens))  # without a model, questions are most of a step
    assert len(asked) == (pytest.approx(20, abs=4) if rare else 20 * REST)


def test_costs_that_seem_too_dear_are_put_to_the_test_now_and_then() -> None:
    drafter = lookahead(budget="measured", rows_cost=1.0)
    drafter.rests = False
    _, trees = play(drafter, [5], 200, lambda tokens: 10 + len(tokens) % 4)
    sent = [at for at, tree in enumerate(trees) if len(tree) > 1]
    assert 2 <= len(sent) <= 8


def test_the_critical_length_is_where_rows_stop_being_free() -> None:
    cost = lambda rows: 1.0 if rows <= 8 else rows / 8  # noqa: E731
    assert critical_length(cost, 1, 64) == 8
    assert critical_length(cost, 8, 64) == 8
    assert critical_length(lambda rows: float(rows), 1, 64) == 1
    assert critical_length(lambda rows: 1.0, 1, 64) == 64
    drafter = lookahead(budget="critical", rows_cost=0.05)
    play(drafter, [5], 60, cycle)
    assert len(drafted(drafter, [5])) == 3


def test_worthwhile_keeps_trees_and_weighs_sequences_together() -> None:
    keep = worthwhile([[0.9, 0.8, 0.1], [0.2, 0.1]], 2, lambda rows: 1.0 + 0.2 * (rows - 2))
    assert keep == [[True, True, False], [False, False]]
    assert worthwhile([[], []], 2, lambda rows: 1.0) == [[], []]


def test_the_record_learns_conditional_chances() -> None:
    record = Record(2)
    picked = Picked([1, 2, 3], [-1, 0, -1], [0, 2, 4])
    for _ in range(200):
        record.observe(picked, 1, [1, 9])
    first, second, third = record.reaches(picked, 1)
    assert first > 0.97
    assert second < 0.03
    assert third < 0.03
    untouched = record.reaches(picked, 2)
    assert untouched == Record(2).reaches(picked, 2)

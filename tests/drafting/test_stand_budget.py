"""What STAND draws is what pays: chances by kind, the price of a row, and switching off where nothing repeats."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.drafting.stand import Stand
from paceline.drafting.stand.budget import FEW, SELDOM, Patience, Prospects
from paceline.drafting.stand.config import StandConfig
from paceline.planning.cost import ForwardCost

REPEATING = MarkovSource.random(vocabulary=40, support=2, spread=2.0, seed=1)
ENDLESS = MarkovSource.random(vocabulary=40, support=40, spread=0.1, seed=1)  # nothing can be foretold
SAMPLED = Sampling(temperature=1.0)


def drafter(row: float, **options: object) -> Stand:
    """On a device where each further row costs `row` forwards."""
    cost = ForwardCost(lambda rows: 1.0 + row * (rows - 1))
    cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]  # seconds of a game are not those of a device
    return Stand(StandConfig(**options), cost=cost)  # type: ignore[arg-type]


def rows_and_steps(made: Stand, source: MarkovSource, tokens: int = 600) -> tuple[float, float]:
    """Draft nodes per step, and tokens per step, over the second half of some trajectories."""
    members = trajectories(6, tokens, SAMPLED)
    steps = [source.run(made, [member]) for member in members][3:]
    return sum(member.stats.drafted for member in members[3:]) / sum(steps), 3 * tokens / sum(steps)


def test_rows_that_cost_nothing_are_all_used_and_dear_ones_hardly() -> None:
    free, dear = (rows_and_steps(drafter(row), REPEATING) for row in (0.0, 0.5))
    assert free[0] > 10
    assert dear[0] < 4
    assert free[1] > dear[1] > 1.3


def test_where_nothing_repeats_drafting_stops_but_for_a_try_now_and_then() -> None:
    nodes, speed = rows_and_steps(drafter(0.6), ENDLESS)
    assert nodes < 0.1
    assert speed < 1.1
    eager = Stand(StandConfig(nodes=30))
    assert rows_and_steps(eager, ENDLESS, tokens=200)[0] > 5  # without the switch, rows are thrown away


def test_it_comes_back_when_text_repeats_again() -> None:
    made = drafter(0.6)
    rows_and_steps(made, ENDLESS)
    assert rows_and_steps(made, REPEATING)[1] > 1.3


def test_a_drafter_without_a_cost_model_sends_the_whole_tree() -> None:
    members = trajectories(4, 200, SAMPLED)
    steps = [REPEATING.run(Stand(StandConfig(nodes=30)), [member]) for member in members]
    assert sum(member.stats.drafted for member in members) / sum(steps) > 8


def test_chances_are_learned_by_kind_and_only_there() -> None:
    prospects = Prospects(ForwardCost(lambda rows: 1.0), longest=3, copied=4)
    good, bad = Prospects.kind(3, 0, 0.99), Prospects.kind(1, 0, 0.2)
    other = prospects.rates[Prospects.kind(2, 1, 0.5)]
    for _ in range(100):
        prospects.judged(good, True)
        prospects.judged(bad, False)
    assert prospects.rates[good] > 0.95
    assert prospects.rates[bad] < 0.05
    assert prospects.rates[Prospects.kind(2, 1, 0.5)] == other
    kinds = {Prospects.kind(length, rank, peak) for length in (1, 2, 3) for rank in (0, 1, 2) for peak in (0.1, 0.5, 0.7, 0.9, 1.0)}
    copies = {prospects.copied(suffix, depth) for suffix in (1, 2, 3, 4) for depth in range(9)}
    assert len(kinds) == 45
    assert not kinds & copies
    assert all(0.0 < prospects.rates[kind] < 1.0 for kind in kinds | copies)


@pytest.mark.parametrize(("cost", "expected"), [(lambda rows: 1.0, 0.0), (lambda rows: float(rows), 0.5)])
def test_the_least_chance_is_the_price_of_a_row_in_tokens(cost: Callable[[int], float], expected: float) -> None:
    assert Prospects(ForwardCost(cost), 3).least(4) == pytest.approx(expected)


def test_patience_doubles_while_tries_fail_and_returns_with_success() -> None:
    patience = Patience()
    pauses = []
    for _ in range(2000):
        due = patience.due
        patience.asked()
        pauses.append(due)
        patience.judged(due, accepted=False)
    tries = [at for at, due in enumerate(pauses) if due]
    assert tries[0] == FEW - 1
    assert tries[-1] - tries[-2] == SELDOM
    assert [step for step in range(9) if patience.learns(step)] == [0, 4, 8]
    patience.judged(True, accepted=True)
    assert patience.pause == FEW
    assert all(patience.learns(step) for step in range(9))


def test_copies_fill_in_where_the_table_knows_nothing() -> None:
    from paceline.drafting.base import DraftLimits

    text = (1, 2, 3, 4, 5, 1, 2)
    for fallback, expected in (("copy", (2, 3, 4, 5, 1, 2)), ("none", (2,))):
        made = Stand(StandConfig(fallback=fallback))  # type: ignore[arg-type]
        (tree,) = made.propose([Sequence(0, Request(text, SAMPLED, max_tokens=50))], [DraftLimits(5, 5)])
        assert tree.token == expected
        assert tree.proposal is None  # chosen, not drawn


def test_the_price_of_a_draw_is_what_one_more_takes() -> None:
    """Not what a step's draws take by the piece: most of that is spent however many there are."""
    prospects = Prospects(ForwardCost(lambda rows: 1.0), longest=3)  # rows are free
    for step in range(400):
        draws = step % 7
        prospects.drew(draws, 0.5 + 0.01 * draws + (5.0 if step % 50 == 49 else 0.0))  # now and then an interruption
    price = prospects.least(1)  # in tokens: one token takes one second here
    assert 0.005 < price < 0.03

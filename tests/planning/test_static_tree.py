"""Optimal static trees: dynamic programming against every tree there is."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.planning.static_tree import Acceptance, AcceptanceTable, Shape, expected_accepted, optimal_shape, parse_acceptance, spell

rates = st.floats(0, 1).map(lambda rate: round(rate, 3))
acceptances = st.lists(st.lists(rates, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)


def brute_force(acceptance: Acceptance, nodes: int, depth: int) -> float:
    """Best value over all trees, by plain recursion over how to share the nodes."""

    @cache
    def best(level: int, rank: int, left: int) -> float:
        row = acceptance[min(level, len(acceptance) - 1)]
        if level == depth or rank == len(row) or left == 0:
            return 0.0
        return max(
            [0.0, *(row[rank] * (1 + best(level + 1, 0, own - 1)) + best(level, rank + 1, left - own) for own in range(1, left + 1))]
        )

    return best(0, 0, nodes)


def check(shape: Shape, nodes: int, depth: int) -> None:
    """A tree numbered layer by layer, within its limits."""
    depths = {0: 0}
    for node, children in enumerate(shape):
        for child in children:
            depths[child] = depths[node] + 1
    assert list(depths) == list(range(len(shape)))
    assert len(shape) <= nodes + 1
    assert max(depths.values()) <= depth


@given(acceptances, st.integers(0, 7), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_planned_trees_are_the_best_there_are(acceptance: Acceptance, nodes: int, depth: int) -> None:
    shape = optimal_shape(acceptance, nodes, depth)
    check(shape, nodes, depth)
    assert expected_accepted(shape, acceptance) == pytest.approx(brute_force(acceptance, nodes, depth), abs=1e-12)


def test_known_shapes() -> None:
    assert optimal_shape(((1.0, 0.5),), 3, 8) == ((1,), (2,), (3,), ())  # nothing beats a certain chain
    assert optimal_shape(((0.5, 0.4, 0.1),), 2, 8) == ((1, 2), (), ())
    assert optimal_shape(((0.1, 0.8),), 2, 8) == ((1, 2), (), ())  # the second rank is worth a bad first one
    assert optimal_shape(((0.9,),), 5, 2) == ((1,), (2,), ())
    assert optimal_shape(((0.9,),), 0, 2) == ((),)


def test_acceptance_is_written_and_read_back() -> None:
    acceptance = ((0.5, 0.25), (0.125,))
    assert spell(acceptance) == "0.5/0.25:0.125"
    assert parse_acceptance(spell(acceptance)) == acceptance
    assert parse("sequoia:nodes=8,acceptance=0.5/0.25:0.125")[0].config().acceptance == "0.5/0.25:0.125"


@pytest.mark.parametrize("text", ["sequoia:acceptance=high", "sequoia:acceptance=1.5", "sequoia:acceptance=", "sequoia:nodes=-1"])
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="sequoia"):
        parse(text)[0].config()


def test_nothing_accepted_plans_nothing() -> None:
    with pytest.raises(UsageError, match="measure over more"):
        AcceptanceTable().rates()

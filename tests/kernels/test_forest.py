"""The kernels of Lookahead against the same rules in plain Python: the same draft, node by node, and the same squeezed trees."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.drafting.lookahead.select import Selection
from paceline.drafting.lookahead.trie import LOOKED, RECORD, Forest, squeeze
from paceline.kernels.foresting import squeezer

pytestmark = pytest.mark.skipif(squeezer() is None, reason="no compiler here")

TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=40), max_size=8)
SHARES = st.sampled_from([0.0, 1e-4, 0.3, 0.5, 1.0])


def grown(texts: list[list[int]], depth: int = 6) -> Forest:
    forest = Forest(depth)
    for text in texts:
        forest.add(tuple(text), 0, len(text))
    return forest


def both(weight: float = 0.0, reserve_input: float = 0.0, reserve_output: float = 0.0, single: bool = False) -> tuple[Selection, Selection]:
    """The same selection in the kernel and in plain Python."""
    kernel, plain = (Selection(weight, reserve_input, reserve_output, single) for _ in range(2))
    assert kernel.kernel is not None
    plain.kernel = None
    return kernel, plain


@settings(max_examples=500, deadline=None)
@given(
    TEXTS,
    TEXTS,
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    SHARES,
    st.sampled_from([(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (1.0, 0.0), (0.0, 1.0)]),
    st.booleans(),
    st.integers(1, 70),
    st.integers(1, 8),
    st.integers(1, 40),
)
def test_drafts_are_those_of_the_rules(  # type: ignore[no-untyped-def]
    mine, others, query, weight, reserve, single, budget, depth, bound
) -> None:
    kernel, plain = both(weight, *reserve, single)
    prompt, outputs = grown(mine), grown(others)
    for again in range(2):
        for one, other in ((prompt, outputs), (None, outputs), (prompt, None)):
            found = kernel(query, one, other, budget, depth)
            assert found == plain(query, one, other, budget, depth)
            assert len(found) <= budget
            tree = found.tree(9)  # refuses anything but pre-order
            assert max(tree.depth) <= depth
            assert len({(parent, token) for parent, token in zip(found.parent, found.token, strict=True)}) == len(found)
        if not again:
            outputs.squeeze(bound)


def test_the_property_is_put_to_large_mixed_and_reserved_drafts() -> None:
    """A control: what the test above compares is not all empty or small."""
    kernel, plain = both(1e-4, 0.25, 0.5)
    prompt = grown([[1, at % 3, 5, at % 7, at % 2, 8] for at in range(40)])
    outputs = grown([[1, at % 5, at % 11, 6, 9] for at in range(200)])
    found = kernel([1], prompt, outputs, 40, 5)
    assert found == plain([1], prompt, outputs, 40, 5)
    assert len(found) == 40
    assert len(set(found.kind)) > 4
    assert found != both(1e-4)[0]([1], prompt, outputs, 40, 5)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(0, 30), st.integers(1, 3))
def test_trees_are_squeezed_alike(texts: list[list[int]], bound: int, copies: int) -> None:
    forest, kernel = grown(texts * copies), squeezer()
    assert kernel is not None
    for tree in forest.trees.values():
        one, other = array("d", tree), array("d", tree)
        kernel(forest.text, one, bound)
        squeeze(forest.text, other, bound)
        assert one == other


def test_many_children_and_many_places() -> None:
    """More than are looked at one by one, and more than are looked at at all."""
    forest = Forest(4)
    for at in range(LOOKED + 500):
        forest.add((1, at % 700, at % 3, at % 2), 0, 1)
    kernel, plain = both()
    assert len(forest.trees[1]) == RECORD * (LOOKED + 500)
    found = kernel([1], None, forest, 100, 3)
    assert found == plain([1], None, forest, 100, 3)
    latest = Counter(at % 700 for at in range(500, LOOKED + 500))
    first = [token for token, parent in zip(found.token, found.parent, strict=True) if parent < 0]
    assert len(first) > 8
    assert all(latest[token] == max(latest.values()) for token in first)


def test_room_grows_with_what_is_asked_and_nothing_stays_of_a_question() -> None:
    forest = grown([[1, *range(2, 60)]], depth=58)
    kernel, plain = both()
    for budget in (3, 50, 4, 57):
        assert kernel([1], None, forest, budget, 60).token == list(range(2, 2 + budget))
        assert kernel([2, 9], None, forest, budget, 60) == plain([2, 9], None, forest, budget, 60)

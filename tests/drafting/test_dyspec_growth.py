"""DySpec's growth by itself: values, budgets, thresholds, draw order, and draws without replacement."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.rng import Purpose, uniform
from paceline.drafting.dyspec_growth import Bounds, Grower, Odds, Urn, ValueGrowth, best_first, draft_odds, layered, seedling

Source = Callable[[tuple[int, ...]], torch.Tensor]  # path below the root -> draft law
DEEP = 32


def urn(*probs: float) -> Urn:
    law = torch.tensor(probs, dtype=torch.float64)
    return Urn(law, law.cumsum(0))


def path(growth: ValueGrowth, node: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while node:
        tokens.append(growth.token[node])
        node = growth.parent[node]
    return tuple(reversed(tokens))


def run(growth: ValueGrowth, grower: Grower, source: Source) -> tuple[list[list[int]], int]:
    """Answer a grower from a source: the frontiers it read, and how many nodes it wanted."""
    frontiers: list[list[int]] = []
    try:
        wanted = next(grower)
        while True:
            frontiers.append(wanted)
            wanted = grower.send(torch.stack([source(path(growth, node)) for node in wanted]))
    except StopIteration as end:
        return frontiers, end.value


def descending(growth: ValueGrowth, node: int, left: Urn) -> int:
    return left.likeliest()


def seeded(seed: int) -> Callable[[ValueGrowth, int, Urn], int]:
    return lambda growth, node, left: left.sample(uniform(seed, growth.depth[node], Purpose.DRAFT, len(growth.token)))


def random_source(vocabulary: int, seed: int, sharpness: float = 2.0) -> Source:
    """A law per last two tokens of the path."""
    table = torch.randn(vocabulary + 1, vocabulary + 1, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    laws = (sharpness * table).softmax(-1)
    return lambda tokens: laws[(-1, -1, *tokens)[-2:]]


def budget_tree(nodes: int, source: Source, seed: int, depth: int = DEEP, odds: Odds = draft_odds) -> tuple[ValueGrowth, list[list[int]]]:
    growth = seedling(0)
    frontiers, _ = run(growth, best_first(growth, Bounds(nodes, depth), seeded(seed), odds), source)
    return growth, frontiers


def test_values_of_forced_descending_draws() -> None:
    """Page item 3: q = (.6, .3, .1) everywhere, seven nodes."""
    growth = seedling(0)
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    run(growth, best_first(growth, Bounds(7, DEEP), descending), lambda tokens: law)
    assert growth.reach[1:] == pytest.approx([1, 0.6, 0.4, 0.36, 0.3, 0.24, 0.216])
    assert sum(growth.reach[1:]) == pytest.approx(3.116)
    assert sum(growth.estimates[1:]) == pytest.approx(1.9656)


@given(st.integers(0, 10_000), st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_popped_values_never_increase_and_budgets_are_prefixes(seed: int, nodes: int) -> None:
    source = random_source(5, seed)
    growth, _ = budget_tree(nodes, source, seed)
    larger, _ = budget_tree(nodes + 1, source, seed)
    values = growth.reach[1:]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))
    assert (larger.token[: nodes + 1], larger.parent[: nodes + 1]) == (growth.token, growth.parent)
    assert growth.drafted == nodes


def test_value_is_path_probability_times_what_earlier_siblings_left() -> None:
    source = random_source(5, 3)
    growth, _ = budget_tree(20, source, 8)
    for node in range(1, 21):
        value, at = 1.0, node
        while at:
            parent = growth.parent[at]
            law = source(path(growth, parent))
            siblings = [each for each in range(1, at) if growth.parent[each] == parent]
            left = 1 - sum(law[growth.token[each]].item() for each in siblings)
            value *= left if at == node else law[growth.token[at]].item()  # the path's own tokens: original draft mass
            at = parent
        assert growth.reach[node] == pytest.approx(value, rel=1e-9)


def test_a_draft_with_one_possible_token_gives_a_chain() -> None:
    growth, _ = budget_tree(6, lambda tokens: torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 0)
    assert growth.parent == [-1, 0, 1, 2, 3, 4, 5]
    capped, _ = budget_tree(6, lambda tokens: torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 0, depth=2)
    assert capped.parent == [-1, 0, 1]  # nothing else can be drawn


def test_values_of_deep_nodes_do_not_vanish() -> None:
    """Sixty-four levels of odds 0.001 are far below the smallest float32."""
    law = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    growth = seedling(0)
    run(growth, best_first(growth, Bounds(64, 64), descending, lambda share, rank: 1e-3), lambda tokens: law)
    assert growth.drafted == 64
    assert all(0 < later < earlier for earlier, later in pairwise(growth.reach[1:]))


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_draft_without_a_law_drafts_nothing(bad: float) -> None:
    law = torch.full((3,), bad, dtype=torch.float64)
    for grow in (best_first, lambda growth, bounds, pick: layered(growth, bounds, 0.1, pick)):
        growth = seedling(0)
        run(growth, grow(growth, Bounds(5, 5), seeded(1)), lambda tokens: law)  # type: ignore[operator]
        assert growth.drafted == 0


def test_leaves_cost_no_draft_forward() -> None:
    growth, frontiers = budget_tree(12, random_source(6, 1), 1)
    assert len(frontiers) == len(set(growth.parent[1:]))
    assert budget_tree(1, random_source(6, 1), 1)[1] == [[0]]


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.1, 0.03]))
@settings(max_examples=30, deadline=None)
def test_layers_read_only_nodes_worth_the_threshold(seed: int, threshold: float) -> None:
    """Page item 5."""
    source = random_source(5, seed)
    growth = seedling(0)
    frontiers, wanted = run(growth, layered(growth, Bounds(10_000, DEEP), threshold, seeded(seed)), source)
    worth = [0, *(node for node in range(1, len(growth.token)) if growth.estimates[node] >= threshold and growth.depth[node] < DEEP)]
    assert len(frontiers) == len({growth.depth[node] for node in worth})
    assert sorted(node for frontier in frontiers for node in frontier) == sorted(worth)
    assert set(growth.parent[1:]) <= set(worth)
    assert all(reach >= threshold for reach in growth.reach[1:])
    assert wanted == growth.drafted


def test_the_last_popped_value_as_threshold_gives_the_same_kind_of_tree() -> None:
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    best, by_layer = seedling(0), seedling(0)
    calls, _ = run(best, best_first(best, Bounds(7, DEEP), descending), lambda tokens: law)
    layers, _ = run(by_layer, layered(by_layer, Bounds(99, DEEP), best.reach[-1] - 1e-12, descending), lambda tokens: law)
    nodes = lambda growth: {path(growth, node) for node in range(1, len(growth.token))}  # noqa: E731
    assert nodes(best) == nodes(by_layer)
    assert len(layers) == max(by_layer.depth) <= len(calls)


def test_a_node_limit_stops_drawing_and_reports_what_was_owed() -> None:
    law = torch.full((4,), 0.25, dtype=torch.float64)
    growth = seedling(0)
    frontiers, wanted = run(growth, layered(growth, Bounds(6, DEEP), 0.05, descending), lambda tokens: law)
    assert growth.drafted == 6  # four children of the root, two below the first of them
    assert growth.parent == [-1, 0, 0, 0, 0, 1, 1]
    assert wanted == 6 + 6  # the first child's third draw, three siblings without any, and two grandchildren worth the threshold
    assert len(frontiers) == 2


def test_ends_of_text_and_the_depth_limit_bear_no_children() -> None:
    source = random_source(4, 5, sharpness=0.5)
    for grow in (
        lambda growth, bounds: best_first(growth, bounds, seeded(3)),
        lambda growth, bounds: layered(growth, bounds, 0.01, seeded(3)),
    ):
        growth = seedling(2)  # a root that is an end of text itself has been decided already: it may go on
        run(growth, grow(growth, Bounds(40, 3, frozenset({2}))), source)
        parents = set(growth.parent[1:]) - {0}
        assert max(growth.depth) <= 3
        assert 2 in growth.token[1:]
        assert all(growth.token[node] != 2 for node in parents)


def test_nodes_stand_depth_first_with_siblings_as_drawn() -> None:
    growth, _ = budget_tree(30, random_source(6, 2), 4)
    tree, order = growth.tree(sampled=True)
    for node, children in enumerate(tree.children()):
        assert [order[child] for child in children] == sorted(order[child] for child in children)
        if children:
            assert tree.proposal is not None
            assert not tree.proposal.replacement
            assert torch.equal(tree.proposal.q[node].probs, growth.q[order[node]].probs)
    assert tree.proposal is not None
    assert set(tree.proposal.q) == {node for node, children in enumerate(tree.children()) if children}


def test_depth_first_order_fills_fewer_mask_blocks() -> None:
    """Block-sparse masks: non-empty square blocks of ancestors, in the order drawn and in the order proposed."""
    growth, _ = budget_tree(256, random_source(16, 2, sharpness=3.0), 4)
    tree, order = growth.tree(sampled=True)
    mask = tree.ancestors()
    place = torch.tensor([order.index(node) for node in range(len(order))])

    def blocks(square: torch.Tensor) -> int:
        padded = torch.zeros(288, 288)
        padded[:257, :257] = square
        return int(padded.view(9, 32, 9, 32).amax((1, 3)).sum())

    assert blocks(mask) < blocks(mask[place][:, place])


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8), st.data())  # subnormal ones have no bits to compare
@settings(max_examples=80, deadline=None)
def test_urn_draws_what_summing_anew_would(weights: list[float], data: st.DataObject) -> None:
    """Skipping stretches of the first cumulative sum is the same map from numbers to tokens, exhausted supports included."""
    total = sum(weights)
    if total < 1e-9:
        return
    left = torch.tensor(weights, dtype=torch.float64) / total
    drawn = urn(*left.tolist())
    seen: set[int] = set()
    while not drawn.empty:
        number = data.draw(st.floats(0, 1, exclude_max=True))
        token = drawn.sample(number)
        assert token not in seen
        assert left[token] > 0
        sums = left.cumsum(0)
        low, high = (sums[token] - left[token]) / sums[-1], sums[token] / sums[-1]
        assert low - 1e-6 <= number <= high + 1e-6
        assert drawn.share(token) == pytest.approx((left[token] / sums[-1]).item(), rel=1e-6)
        drawn.remove(token)
        seen.add(token)
        left[token] = 0.0
    assert not left.any()


def test_an_urn_with_one_overwhelming_token_still_knows_the_rest() -> None:
    drawn = urn(1 - 3e-15, 1e-15, 2e-15)
    drawn.remove(0)
    assert drawn.share(2) == pytest.approx(2 / 3)
    assert drawn.sample(0.5) == 2
    assert drawn.sample(0.1) == 1

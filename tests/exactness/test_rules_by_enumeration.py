"""Recursive rejection emits exactly the target's law: exact enumeration, and wrong rules that the same enumeration catches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from law_enumeration import PROMPT, Rows, Trees, best_first, distance_to_plain, first_two, fixed_shape, second_order, verdict_law

from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.verification.rejection import Odds, Rejection
from paceline.verification.verifier import Verifier

EXACT = 1e-12
CAUGHT = 1e-3
V = 3
# After the prompt and after one token more, two tokens are likelier under P than under Q: with a single one, a residual has nowhere else
# to go, and wrong rules for the second child could not show.
P = second_order(V, seed=2)
Q = second_order(V, seed=11)

TARGET = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
DRAFT = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def distance(trees: Trees, p: Rows = P, verifier: Verifier | None = None) -> float:
    return distance_to_plain(first_two(trees, p, verifier or Verifier()), p, V)


def chosen(q: Rows, widths: tuple[int, ...], as_if_drawn: bool = False) -> TokenTree:
    """The most likely children of every node; with `as_if_drawn`, wrongly declared as samples of q."""

    def below(history: tuple[int, ...], depth: int) -> list[list[int]]:
        if depth == len(widths):
            return [[]]
        best = q(history).argsort(descending=True)[: widths[depth]].tolist()
        return [[token, *rest] for token in best for rest in below((*history, token), depth + 1)]

    tree = TokenTree.from_paths(PROMPT[-1], below(PROMPT, 0))
    if not as_if_drawn:
        return tree
    inner = sorted({parent for parent in tree.parent if parent >= 0})
    q_of = {node: Distribution(q((*PROMPT, *(tree.token[each] for each in tree.path(node))))) for node in inner}
    return TokenTree(tree.token, tree.parent, Proposal(q_of))


def test_the_sources_can_show_mistakes_at_a_second_child() -> None:
    reached = [PROMPT, *((PROMPT[-1], token) for token in range(V))]
    assert all((P(pair) > Q(pair)).sum() == 2 for pair in reached)


@pytest.mark.parametrize(
    ("draws", "replacement", "acceptance"),
    [(1, True, 0.7), (1, False, 0.7), (2, True, 0.76), (2, False, 0.7 + 0.38 / 3.5), (3, True, 0.808), (3, False, 1.0)],
)
def test_acceptance_of_several_draws(draws: int, replacement: bool, acceptance: float) -> None:
    """SpecInfer's multi-round rule and its variant without replacement on p=(.5,.3,.2), q=(.2,.5,.3)."""
    emitted, accepted = torch.zeros(V, dtype=torch.float64), 0.0
    for tree, probability in fixed_shape(lambda history: DRAFT, (draws,), replacement):
        for tokens, weight in verdict_law(tree, lambda history: TARGET, Verifier()).items():
            emitted[tokens[0]] += probability * weight
            accepted += probability * weight * (len(tokens) > 1)
    torch.testing.assert_close(emitted, TARGET, rtol=0, atol=EXACT)
    assert accepted == pytest.approx(acceptance, abs=EXACT)
    assert round(0.7 + 0.38 / 3.5, 7) == 0.8085714


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_dynamic_trees_keep_the_law(nodes: int, sparse: bool) -> None:
    """DySpec Algorithm 1: how the tree grows depends on what was drawn."""
    assert distance(best_first(Q, nodes, sparse)) < EXACT


@pytest.mark.parametrize("seed", range(3))
def test_dynamic_trees_keep_the_law_of_other_sources(seed: int) -> None:
    p, q = second_order(V, seed=10 + seed), second_order(V, seed=20 + seed)
    assert distance(best_first(q, 3), p) < EXACT


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("widths", [(1, 1), (2, 1), (3,), (2, 2)])
def test_fixed_trees_keep_the_law(widths: tuple[int, ...], replacement: bool) -> None:
    assert distance(fixed_shape(Q, widths, replacement)) < EXACT


def test_a_draft_with_holes_keeps_the_law() -> None:
    """Zero draft probabilities, and more children wanted than the support holds."""
    holed = lambda history: torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)  # noqa: E731
    assert distance(fixed_shape(holed, (3,), False)) < EXACT
    assert distance(fixed_shape(holed, (2, 1), True)) < EXACT


def test_a_target_with_holes_keeps_the_law() -> None:
    """Top-k and top-p zero the target on tokens that drafts still propose."""
    holed = lambda history: torch.tensor([0.7, 0.0, 0.3], dtype=torch.float64)  # noqa: E731
    assert distance(best_first(Q, 3), holed) < EXACT


def test_a_perfect_draft_is_always_accepted() -> None:
    for tree, _ in fixed_shape(P, (2, 1), False):
        law = verdict_law(tree, P, Verifier())
        assert sum(weight for tokens, weight in law.items() if len(tokens) == 3) == pytest.approx(1, abs=EXACT)
    assert distance(fixed_shape(P, (2, 1), True)) < EXACT


@pytest.mark.parametrize("widths", [(1,), (2,), (2, 2), (3, 1)])
def test_chosen_children_keep_the_law_under_the_point_mass_rule(widths: tuple[int, ...]) -> None:
    tree = chosen(Q, widths)
    assert distance(iter([(tree, 1.0)]), verifier=Verifier("rejection")) < EXACT


def test_chosen_and_drawn_nodes_mix_in_one_tree() -> None:
    """A node that the proposal leaves out has chosen children."""

    def mixed() -> Trees:
        for tree, probability in fixed_shape(Q, (2,), False):
            below = [[tree.token[1], 0], [tree.token[1], 2], [tree.token[2], 1]]
            merged = TokenTree.from_paths(PROMPT[-1], below)
            assert tree.proposal is not None
            yield TokenTree(merged.token, merged.parent, Proposal({0: tree.proposal.q[0]})), probability

    assert distance(mixed()) < EXACT


def test_point_mass_rejection_accepts_like_sample_and_match() -> None:
    """Acceptance is the target mass of the children, whatever their order."""
    tree = TokenTree.from_paths(PROMPT[-1], [[2], [0]])
    law = verdict_law(tree, lambda history: TARGET, Verifier("rejection"))
    assert sum(weight for tokens, weight in law.items() if len(tokens) > 1) == pytest.approx(0.7, abs=EXACT)


# Wrong rules. Each is a mistake seen in real code; the enumeration must not let it pass.


def test_catches_the_ratio_test_on_chosen_children() -> None:
    assert distance(iter([(chosen(Q, (2,), as_if_drawn=True), 1.0)])) > CAUGHT
    assert distance(iter([(chosen(Q, (1, 1), as_if_drawn=True), 1.0)])) > CAUGHT


def test_catches_a_residual_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Odds.rejected

    def wrong(odds: Odds, tokens: list[int]) -> Odds:
        return replace(right(odds, tokens), residual=odds.residual, residual_mass=odds.residual_mass)

    monkeypatch.setattr(Odds, "rejected", wrong)
    assert distance(best_first(Q, 1)) > CAUGHT
    assert distance(best_first(Q, 3)) > CAUGHT


def test_catches_a_draft_row_not_zeroed_after_a_draw() -> None:
    def undeclared() -> Trees:
        for tree, probability in best_first(Q, 3):
            assert tree.proposal is not None
            yield TokenTree(tree.token, tree.parent, Proposal(tree.proposal.q, replacement=True)), probability

    assert distance(undeclared()) > CAUGHT


def test_catches_a_draft_row_not_renormalised(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Odds.rejected

    def wrong(odds: Odds, tokens: list[int]) -> Odds:
        return replace(right(odds, tokens), draft_mass=odds.draft_mass)

    monkeypatch.setattr(Odds, "rejected", wrong)
    assert distance(fixed_shape(Q, (2,), False)) > CAUGHT


def test_catches_a_bonus_from_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Rejection._laws

    def wrong(walk: Rejection, live: dict[int, int]) -> tuple[torch.Tensor, ...]:
        tree = walk.rows.trees[0]
        if walk.children[0][live[0]]:
            return right(walk, live)
        return (Q((*PROMPT, *(tree.token[node] for node in tree.path(live[0])))),)

    monkeypatch.setattr(Rejection, "_laws", wrong)
    assert distance(best_first(Q, 1)) > CAUGHT


def test_catches_siblings_sorted_after_the_draw() -> None:
    assert distance(best_first(Q, 3, order=lambda law, token: -law[token].item())) > CAUGHT


def test_catches_drawn_nodes_dropped_by_probability() -> None:
    """Building more and keeping the likely ones conditions on the values that were drawn."""

    def pruned() -> Trees:
        for tree, probability in best_first(Q, 2):
            assert tree.proposal is not None
            keep = [node for node in range(1, len(tree)) if tree.proposal.q[tree.parent[node]].probs[tree.token[node]] > 0.3]
            if 1 in keep:
                yield tree, probability
            else:
                yield TokenTree.chain(PROMPT[-1]), probability

    assert distance(pruned(), verifier=Verifier("rejection")) > CAUGHT

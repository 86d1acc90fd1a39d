"""Walking along decided tokens, and coupled identity: whatever the tree, output equals plain decoding with the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import drafts, plain_tokens, prompts, samplings, sequence_of, tree_logits, with_random_proposal

from paceline.core.sampling import Sampling
from paceline.core.tree import TokenTree
from paceline.verification import rows
from paceline.verification.verifier import Verifier
from paceline.verification.walk import follow

TREE = TokenTree.from_paths(9, [[1, 2, 3], [1, 0, 2], [0, 0], [2]])  # nodes: 9 1 2 3 0 2 0 0 2


@pytest.fixture(params=["level by level", "all at once"])
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of deciding nodes, whatever the device."""
    monkeypatch.setattr(rows, "judges_all_nodes", lambda device: request.param == "all at once")


def test_child_finds_only_children() -> None:
    for node in range(len(TREE)):
        below = TREE.children()[node]
        for token in range(4):
            expected = next((each for each in below if TREE.token[each] == token), None)
            assert TREE.child(node, token) == expected


def test_the_walk_follows_decisions_and_adds_one() -> None:
    #        root 1  2  3  0  2  0  0  2
    decided = [1, 0, 9, 9, 2, 7, 9, 9, 9]
    assert follow(TREE, decided) == ((1, 4, 5), (1, 0, 2, 7))
    assert follow(TREE, [5] * len(TREE)) == ((), (5,))
    assert follow(TREE, [0] * len(TREE)) == ((6, 7), (0, 0, 0))  # id 0 is a token like any other
    assert follow(TokenTree.chain(0, [0, 0]), [8, 0, 0, 0], start=1) == ((1, 2), (0, 0, 0))


@settings(max_examples=60, deadline=None)
@given(samplings(), prompts, st.lists(drafts, min_size=8, max_size=8), st.integers(0, 2), st.booleans())
def test_coupled_identity(sampling: Sampling, prompt: list[int], plans: list[list[list[int]]], sample: int, sampled: bool) -> None:
    """All options, any trees, with and without proposals."""
    verifier, sequence = Verifier(coupled=True), sequence_of(prompt, sampling, sample)
    for plan in plans:
        tree = TokenTree.from_paths(sequence.tokens[-1], plan)
        if sampled:
            tree = with_random_proposal(tree)
        (verdict,) = verifier.judge([sequence], [tree], tree_logits(sequence, tree))
        assert verdict.tokens[:-1] == tuple(tree.token[node] for node in verdict.accepted)
        assert all(tree.parent[node] == above for node, above in zip(verdict.accepted, (0, *verdict.accepted), strict=False))
        sequence.tokens.extend(verdict.tokens)
    assert sequence.output == plain_tokens(prompt, sampling, len(sequence.output), sample)


@pytest.mark.usefixtures("strategy")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_oracle_draft_is_accepted_whole(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, repetition_penalty=1.2, seed=5)
    future = plain_tokens([3, 1], sampling, 6)
    sequence = sequence_of([3, 1], sampling)
    tree = TokenTree.from_paths(1, [[(future[0] + 1) % 12, 0], [*future[:2], (future[2] + 1) % 12], future[:5]])
    (verdict,) = Verifier().judge([sequence], [tree], tree_logits(sequence, tree))
    assert verdict.tokens == tuple(future)
    assert len(verdict.accepted) == 5


def test_coupling_needs_the_same_seed_and_sample() -> None:
    """Negative control: another seed, sample or position of the same law gives other tokens."""
    sampling = Sampling(temperature=1.0, seed=1)
    tokens = plain_tokens([1, 2, 3], sampling, 20)
    assert plain_tokens([1, 2, 3], sampling, 20) == tokens
    assert plain_tokens([1, 2, 3], sampling, 20, sample=1) != tokens
    assert plain_tokens([1, 2, 3], Sampling(temperature=1.0, seed=2), 20) != tokens


@pytest.mark.usefixtures("strategy")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_branches_that_share_a_beginning_without_sharing_nodes_are_all_followed(temperature: float) -> None:
    """Lookahead's parallel mode: the branch that goes furthest wins, wherever it stands."""
    sampling = Sampling(temperature=temperature, repetition_penalty=1.2, seed=5)
    future = plain_tokens([3, 1], sampling, 6)
    wrong = [(token + 1) % 12 for token in future]
    branches = [[future[0], wrong[1]], future[:3], [*future[:2], wrong[2]], future[:5]]
    token, parent = [1], [-1]
    for branch in branches:
        parent.extend([0, *range(len(token), len(token) + len(branch) - 1)])
        token.extend(branch)
    tree = TokenTree(tuple(token), tuple(parent))
    sequence = sequence_of([3, 1], sampling)
    (verdict,) = Verifier().judge([sequence], [tree], tree_logits(sequence, tree))
    assert verdict.tokens == tuple(future)
    assert verdict.accepted == tuple(range(9, 14))

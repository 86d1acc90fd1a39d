"""Token trees: what any valid tree satisfies, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.tree import ROOT, Distribution, TokenTree

paths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8)


@settings(max_examples=100, deadline=None)
@given(paths)
def test_a_merged_tree_holds_exactly_the_prefixes(branches: list[list[int]]) -> None:
    tree = TokenTree.from_paths(9, branches)
    spelled = [tuple(tree.token[node] for node in tree.path(node)) for node in range(len(tree))]
    assert len(set(spelled)) == len(tree)
    assert set(spelled) == {()} | {tuple(branch[:stop]) for branch in branches for stop in range(1, len(branch) + 1)}


@settings(max_examples=100, deadline=None)
@given(paths)
def test_depth_children_path_and_ancestors_agree(branches: list[list[int]]) -> None:
    tree = TokenTree.from_paths(9, branches)
    below, mask = tree.children(), tree.ancestors()
    assert tree.parent[ROOT] == -1
    assert tree.depth[ROOT] == 0
    for node in range(len(tree)):
        path = tree.path(node)
        assert tree.depth[node] == len(path)
        assert mask[node].nonzero().flatten().tolist() == sorted({ROOT, *path})
        assert all(tree.parent[child] == node for child in below[node])
        assert below[node] == sorted(below[node])
    assert sum(map(len, below)) == len(tree) - 1
    assert tree.is_chain == all(len(children) <= 1 for children in below)


@settings(max_examples=100, deadline=None)
@given(paths)
def test_rebuilding_from_arrays_gives_the_same_tree(branches: list[list[int]]) -> None:
    tree = TokenTree.from_paths(9, branches)
    assert TokenTree(tree.token, tree.parent) == tree


def test_earlier_paths_come_first_among_siblings() -> None:
    tree = TokenTree.from_paths(0, [[5, 1], [2], [5, 0]])
    assert tree.token == (0, 5, 1, 0, 2)
    assert tree.parent == (-1, 0, 1, 1, 0)


def test_a_chain_is_a_tree_and_an_empty_draft_a_root() -> None:
    chain = TokenTree.chain(4, [0, 0, 7])
    assert (chain.token, chain.parent, chain.depth, chain.is_chain) == ((4, 0, 0, 7), (-1, 0, 1, 2), (0, 1, 2, 3), True)
    assert len(TokenTree.chain(4)) == 1


@pytest.mark.parametrize(
    ("token", "parent"),
    [
        ((), ()),
        ((1, 2), (-1,)),
        ((1,), (0,)),
        ((1, 2), (-1, -1)),  # two roots
        ((1, 2), (-1, 1)),  # its own parent
        ((1, 2, 3), (-1, 2, 0)),  # parent after child
        ((1, 2, 3, 4), (-1, 0, 0, 1)),  # breadth-first
    ],
)
def test_what_is_no_tree_in_pre_order_is_refused(token: tuple[int, ...], parent: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        TokenTree(token, parent)


def test_sparse_and_dense_distributions_agree() -> None:
    sparse = Distribution(torch.tensor([0.25, 0.75]), torch.tensor([3, 0]))
    assert sparse.dense(5).tolist() == [0.75, 0, 0, 0.25, 0]
    assert Distribution(torch.tensor([0.5, 0.5])).dense(2).dtype == torch.float64

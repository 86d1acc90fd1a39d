"""Paths of a tree's rows follow from its parents, and are the same as those that its mask shows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from paceline.attention.paths import paths
from paceline.core.batch import Segment
from paceline.core.tree import TokenTree

CONTEXTS = (0, 1, 50)


class Memory:
    """Logical slots in runs."""

    def __init__(self, length: int, held: Sequence[tuple[int, int]]) -> None:
        self.length, self.held = length, held

    def runs(self, stop: int) -> list[tuple[int, int]]:
        found = []
        for low, high in self.held:
            count = min(high - low, stop)
            if count > 0:
                found.append((low, low + count))
            stop -= count
        return found


def parents(random_numbers: random.Random, nodes: int) -> list[int]:
    """Of a tree in pre-order."""
    found, path = [-1], [0]
    for node in range(1, nodes):
        path = path[: random_numbers.randint(1, len(path))]
        found.append(path[-1])
        path.append(node)
    return found


def mask_of(parent: Sequence[int]) -> Tensor:
    mask = torch.eye(len(parent), dtype=torch.bool)
    for node in range(1, len(parent)):
        mask[node] |= mask[parent[node]]
    return mask


def tree_of(parent: Sequence[int]) -> TokenTree:
    return TokenTree(tuple(range(len(parent))), tuple(parent))


def masked(segment: Segment) -> Segment:
    """The same with a mask in place of the tree."""
    return Segment(segment.memory, segment.rows, mask=segment.visible())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("lead", [0, 3])
@pytest.mark.parametrize("window", [None, 6])
def test_paths_of_a_tree_are_those_of_its_mask(context: int, apart: bool, lead: int, window: int | None) -> None:
    numbers = random.Random(context)
    for trial in range(40):
        nodes = numbers.randint(2, 70)
        tree, other = tree_of(parents(numbers, nodes)), tree_of(parents(numbers, nodes))
        held = [(10, 10 + context), (300, 500)] if apart and context else [(100, 400)]
        if trial % 7 == 0:
            held = [(10, 40), (200, 400)]  # the context, or the tree, lies in two pieces
        rows = lead + nodes
        plain, inside = Segment(Memory(5, [(0, 9)]), 3), Segment(Memory(0, [(600, 700)]), rows, tree=tree)
        segments = [plain, Segment(Memory(context, held), rows, tree=tree), inside]
        positions = [5, 6, 7]
        for start in (context, 0):
            positions += [*range(start, start + lead), *(start + lead + depth for depth in tree.depth)]
        found = paths(segments, positions, window)
        assert found == paths([plain, *map(masked, segments[1:])], positions, window)
        assert found is not None
        if other.parent != tree.parent:  # the control
            wrong = [plain, replace(segments[1], tree=other), inside]
            assert paths(wrong, positions, None) != paths(segments, positions, None)


def test_a_row_sees_its_ancestors_and_what_stands_before_the_tree() -> None:
    found = paths([Segment(Memory(4, [(20, 40)]), 5, tree=tree_of([-1, 0, 1, 0]))], [4, 5, 6, 7, 6], None)
    assert found is not None
    runs = [tuple(found.runs[2 * at : 2 * at + 2]) for at in range(len(found.runs) // 2)]
    rows = [runs[low:high] for low, high in pairwise(found.first)]
    assert rows == [[(20, 25)], [(20, 26)], [(20, 27)], [(20, 28)], [(20, 26), (28, 29)]]
    assert found.longest == 8


@pytest.mark.parametrize("nodes", [1, 2, 7, 8, 9, 64, 65, 200])
def test_ancestors(nodes: int) -> None:
    parent = parents(random.Random(nodes), nodes)
    assert torch.equal(TokenTree(tuple(range(nodes)), tuple(parent)).ancestors(), mask_of(parent))

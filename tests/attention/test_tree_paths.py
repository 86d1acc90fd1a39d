"""Paths of a tree's rows are found for all of them at once, and are the same as those found row by row."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from paceline.attention import paths as module
from paceline.attention.paths import Paths, paths
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


def row_by_row(monkeypatch: pytest.MonkeyPatch, segments: list[Segment]) -> Paths:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_tree", lambda segment: None)
        found = paths(segments, [], None)
    assert found is not None
    return found


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("apart", [False, True])
def test_all_at_once_is_row_by_row(monkeypatch: pytest.MonkeyPatch, context: int, apart: bool) -> None:
    numbers = random.Random(context)
    for trial in range(60):
        nodes = numbers.randint(2, 70)
        mask = mask_of(parents(numbers, nodes))
        if trial % 5 == 0:
            mask[:, 0] = False  # the root is seen by nobody but itself
            mask[0, 0] = True
        held = [(10, 10 + context), (300, 500)] if apart and context else [(100, 400)]
        if trial % 7 == 0:
            held = [(10, 40), (200, 400)]  # the context, or the tree, lies in two pieces
        segments = [
            Segment(Memory(5, [(0, 9)]), 3),
            Segment(Memory(context, held), nodes, mask),
            Segment(Memory(0, [(600, 700)]), nodes, mask),
        ]
        found, expected = paths(segments, [], None), row_by_row(monkeypatch, segments)
        assert found is not None
        assert torch.equal(found.first, expected.first)
        assert torch.equal(found.runs, expected.runs)
        assert found.longest == expected.longest


def test_the_usual_tree_takes_the_short_way() -> None:
    """The control: the comparison above is of two ways."""
    mask = mask_of([-1, 0, 1, 0])
    assert module._tree(Segment(Memory(50, [(0, 90)]), 4, mask)) is not None
    assert module._tree(Segment(Memory(50, [(0, 52), (60, 90)]), 4, mask)) is None
    assert module._tree(Segment(Memory(50, [(0, 90)]), 4)) is None


@pytest.mark.parametrize("nodes", [1, 2, 7, 8, 9, 64, 65, 200])
def test_ancestors(nodes: int) -> None:
    parent = parents(random.Random(nodes), nodes)
    assert torch.equal(TokenTree(tuple(range(nodes)), tuple(parent)).ancestors(), mask_of(parent))

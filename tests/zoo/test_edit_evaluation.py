"""Figures of the cards: edit distance by its recurrence, and call counts that can be worked out by hand."""

from __future__ import annotations

from functools import cache
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paceline.models.nat import NatConfig, NatDrafter, Source
from paceline.zoo.edit_evaluation import edit_distance
from paceline.zoo.nat_evaluation import draft_quality

TEXTS = st.lists(st.integers(0, 3), max_size=7)


@given(TEXTS, TEXTS)
def test_edit_distance_is_the_recurrence(a: list[int], b: list[int]) -> None:
    @cache
    def slow(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a, b) == slow(len(a), len(b)) == edit_distance(b, a)


class Oracle(NatDrafter):
    """Knows the output; its first slot is wrong if asked to be."""

    def __init__(self, output: list[int], wrong: bool) -> None:
        super().__init__(NatConfig(30, 4, 1, 1, 1, 4, 4, 64))
        self.output, self.wrong = [*output, 0, *[9] * 30], wrong

    def fill(self, source: Source, prefix: Tensor, block: int) -> Tensor:
        wanted = torch.tensor(self.output[len(prefix) : len(prefix) + block])
        if self.wrong:
            wanted[0] = (wanted[0] + 1) % 30
        return torch.nn.functional.one_hot(wanted, 30).float()


@pytest.mark.parametrize("block", [1, 4, 25])
@pytest.mark.parametrize("length", [0, 3, 4, 5, 19])
def test_drafts_are_counted_like_verifier_calls(block: int, length: int) -> None:
    output = list(range(3, 3 + length))
    right = draft_quality(Oracle(output, wrong=False), [[5]], [output], block)
    assert right.calls == ceil((length + 1) / (block + 1))
    assert right.accepted_by_slot[: min(block, length + 1)] == [1.0] * min(block, length + 1)
    wrong = draft_quality(Oracle(output, wrong=True), [[5]], [output], block)
    assert (wrong.calls, wrong.tokens_per_call, wrong.accepted_by_slot[0]) == (length + 1, 1.0, 0.0)

"""Batches cover each epoch exactly and depend on nothing but the counter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from paceline.core.errors import UsageError
from paceline.zoo.packing import Ids, PackedDocuments

CONTEXT = 8


def numbered(lengths: list[int]) -> list[Ids]:
    """Documents whose ids are all different, so that a row identifies its place."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, stop, dtype=np.uint16) for start, stop in itertools.pairwise(ends)]


def test_one_epoch_serves_every_window_once() -> None:
    data = PackedDocuments(numbered([30, 7, 50, 20, 22]), seed=1)
    windows = (data.tokens - 1) // CONTEXT
    inputs = torch.cat([data.batch(index * CONTEXT, 1, CONTEXT)[0, :-1] for index in range(windows)])
    assert len(inputs) == len(set(inputs.tolist())) == windows * CONTEXT


def test_targets_follow_inputs_within_a_document() -> None:
    data = PackedDocuments(numbered([1000]), seed=1)
    row = data.batch(0, 1, CONTEXT)[0]
    assert torch.equal(row[1:], row[:-1] + 1)


def test_epochs_differ_and_counter_is_the_only_state() -> None:
    documents = numbered([40] * 20)
    data = PackedDocuments(documents, seed=1)
    first = data.batch(0, 4, CONTEXT)
    second = data.batch(data.tokens, 4, CONTEXT)  # the same place one epoch later; the cached epoch changes
    assert not torch.equal(first, second)
    assert torch.equal(data.batch(0, 4, CONTEXT), first)
    assert torch.equal(PackedDocuments(documents, seed=1).batch(data.tokens, 4, CONTEXT), second)
    assert not torch.equal(PackedDocuments(documents, seed=2).batch(0, 4, CONTEXT), first)


def test_a_batch_equals_its_rows_across_an_epoch_border() -> None:
    data = PackedDocuments(numbered([33, 20, 31]), seed=3)
    batch = data.batch(data.tokens - 2 * CONTEXT, 4, CONTEXT)
    rows = [data.batch(data.tokens - 2 * CONTEXT + row * CONTEXT, 1, CONTEXT)[0] for row in range(4)]
    assert torch.equal(batch, torch.stack(rows))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than one row"):
        PackedDocuments(numbered([5]), seed=1).batch(0, 1, CONTEXT)

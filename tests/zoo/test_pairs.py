"""Pairs of the editing task: reproducible, bounded, and padded only behind the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from paceline.core.errors import UsageError
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID
from paceline.zoo.pairs import POOL, EditPairs, max_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.fixture
def data(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> EditPairs:
    return EditPairs(texts, tokenizer, seed=3)


def test_a_batch_depends_on_its_step_alone(texts: list[str], tokenizer: PreTrainedTokenizerBase, data: EditPairs) -> None:
    wanted = data.batch(POOL + 2, 4, 32)
    data.batch(0, 4, 32)
    for stream in (data, EditPairs(texts, tokenizer, seed=3)):
        found = stream.batch(POOL + 2, 4, 32)
        assert torch.equal(found.source, wanted.source)
        assert torch.equal(found.target, wanted.target)


def test_steps_and_seeds_differ(texts: list[str], tokenizer: PreTrainedTokenizerBase, data: EditPairs) -> None:
    first = data.batch(0, 4, 32).source
    others = [data.batch(1, 4, 32).source, data.batch(POOL, 4, 32).source, EditPairs(texts, tokenizer, seed=4).batch(0, 4, 32).source]
    assert not any(first.shape == other.shape and torch.equal(first, other) for other in others)


def test_rows_end_with_end_of_text_and_padding(data: EditPairs) -> None:
    batch = data.batch(0, 8, 48)
    assert batch.target.shape[1] <= 48
    assert batch.source.shape[1] <= max_source(48)
    for row in batch.target.tolist():
        text = row[: row.index(END_OF_TEXT_ID) + 1]
        assert PAD_ID not in text
        assert set(row[len(text) :]) <= {PAD_ID}
    assert batch.tokens == int((batch.target != PAD_ID).sum())
    assert (batch.source[:, 0] != PAD_ID).all()
    assert END_OF_TEXT_ID not in batch.source  # the lookup of aggressive decoding is on a source without it


def test_targets_are_verbatim_spans(texts: list[str], tokenizer: PreTrainedTokenizerBase, data: EditPairs) -> None:
    pairs = data.pairs("some", 30, 64)
    assert len(pairs) == 30
    whole = "\n".join(texts)
    for pair in pairs:
        assert tokenizer.decode(pair.target) == pair.target_text
        assert tokenizer.decode(pair.source) == pair.source_text
        assert pair.target_text in whole
        assert 1 <= pair.target_text.count("\n") + 1 <= 8
    assert any(pair.source != pair.target for pair in pairs)
    assert pairs == data.pairs("some", 30, 64) != data.pairs("other", 30, 64)


def test_no_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="at least one file"):
        EditPairs([""], tokenizer, seed=0)

"""Logits processing per node: parity with `transformers`, equality with the flat history, and settings that cannot work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import VOCABULARY, drafts, history_logits, prompts, samplings, tokens
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.core.tree import ROOT, TokenTree
from paceline.verification.processors import Processor, check_sampling


def flat(sampling: Sampling, prompt_length: int, history: list[int], logits: torch.Tensor) -> torch.Tensor:
    """One row processed by `Processor` when the whole history is committed."""
    processor = Processor(sampling, prompt_length, logits.shape[-1])
    processor.catch_up(history)
    row = logits.clone().unsqueeze(0)
    processor.process(row, TokenTree.chain(history[-1]), [ROOT])
    return row[0]


def by_the_book(sampling: Sampling, prompt_length: int, history: list[int], logits: torch.Tensor) -> torch.Tensor:
    """The definition, token by token."""
    row = logits.tolist()
    for token, bias in sampling.logit_bias.items():
        row[token] += bias
    for token in set(history):
        row[token] = row[token] / sampling.repetition_penalty if row[token] > 0 else row[token] * sampling.repetition_penalty
    for token, count in Counter(history[prompt_length:]).items():
        row[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    size = sampling.no_repeat_ngram
    if size and len(history) >= size - 1:
        last = history[len(history) - size + 1 :]
        banned = {history[end] for end in range(size - 1, len(history)) if history[end - size + 1 : end] == last}
        if any(value > -torch.inf for token, value in enumerate(row) if token not in banned):
            row = [-torch.inf if token in banned else value for token, value in enumerate(row)]
    return torch.tensor(row, dtype=logits.dtype)


@settings(max_examples=150, deadline=None)
@given(samplings(), prompts, st.lists(tokens, max_size=10))
def test_flat_processing_is_the_definition(sampling: Sampling, prompt: list[int], output: list[int]) -> None:
    history = prompt + output
    logits = history_logits(history, dtype=torch.float64)
    found = flat(sampling, len(prompt), history, logits)
    torch.testing.assert_close(found, by_the_book(sampling, len(prompt), history, logits), rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(samplings(), prompts, st.lists(tokens, max_size=6), drafts, st.data())
def test_a_node_is_processed_as_its_flat_history(
    sampling: Sampling, prompt: list[int], output: list[int], branches: list[list[int]], data: st.DataObject
) -> None:
    history = prompt + output
    tree = TokenTree.from_paths(history[-1], branches)
    nodes = data.draw(st.lists(st.integers(0, len(tree) - 1), unique=True, min_size=1))
    processor = Processor(sampling, len(prompt), VOCABULARY)
    for stop in sorted(data.draw(st.lists(st.integers(0, len(history)), max_size=3))):
        processor.catch_up(history[:stop])  # committed in pieces
    processor.catch_up(history)
    logits = torch.stack([history_logits([node]) for node in nodes])
    expected = [
        flat(sampling, len(prompt), history + [tree.token[below] for below in tree.path(node)], row)
        for node, row in zip(nodes, logits, strict=True)
    ]
    processor.process(logits, tree, nodes)
    assert torch.equal(logits, torch.stack(expected))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(penalty: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(0, 300, (80,), generator=generator)
    logits = torch.randn(500, generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history.unsqueeze(0), logits.clone().unsqueeze(0))[0]
    assert torch.equal(flat(Sampling(repetition_penalty=penalty), 30, history.tolist(), logits), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_no_repeat_ngram_equals_transformers(size: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    history = torch.randint(0, 4, (length,), generator=generator)
    logits = torch.randn(9, generator=generator)
    expected = NoRepeatNGramLogitsProcessor(size)(history.unsqueeze(0), logits.clone().unsqueeze(0))[0]
    assert torch.equal(flat(Sampling(no_repeat_ngram=size), 1, history.tolist(), logits), expected)


def test_the_whole_order_equals_transformers() -> None:
    """Where both have a step, composition agrees: repetition penalty, then n-grams."""
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(0, 6, (40,), generator=generator)
    logits = torch.randn(50, generator=generator)
    scores = RepetitionPenaltyLogitsProcessor(1.4)(history.unsqueeze(0), logits.clone().unsqueeze(0))
    expected = NoRepeatNGramLogitsProcessor(3)(history.unsqueeze(0), scores)[0]
    assert torch.equal(flat(Sampling(repetition_penalty=1.4, no_repeat_ngram=3), 10, history.tolist(), logits), expected)


def test_penalties_on_counts_leave_the_prompt_alone() -> None:
    row = flat(Sampling(frequency_penalty=0.5, presence_penalty=0.25), 3, [1, 1, 2, 3, 3, 3], torch.zeros(5))
    assert row.tolist() == [0, 0, 0, -1.75, 0]


def test_many_distinct_tokens_grow_the_table() -> None:
    history = list(range(2000)) + list(range(0, 2000, 7))
    row = flat(Sampling(frequency_penalty=1.0), 0, history, torch.zeros(2000))
    assert row.tolist() == [-2.0 if token % 7 == 0 else -1.0 for token in range(2000)]


def test_placeholder_ids_beyond_the_vocabulary_are_ignored() -> None:
    sampling = Sampling(repetition_penalty=2.0, no_repeat_ngram=2)
    row = flat(sampling, 4, [1, 99, -1, 1], torch.ones(5))
    assert row.tolist() == [1, 0.5, 1, 1, 1]


def test_bans_that_leave_nothing_are_lifted() -> None:
    row = flat(Sampling(no_repeat_ngram=1), 1, [0, 1, 2], torch.tensor([3.0, 1.0, 2.0]))
    assert row.tolist() == [3, 1, 2]
    row = flat(Sampling(no_repeat_ngram=1, logit_bias={2: -torch.inf}), 1, [0, 1], torch.tensor([3.0, 1.0, 2.0]))
    assert row.tolist() == [3, 1, -torch.inf]


@pytest.mark.parametrize(
    ("bias", "complaint"),
    [
        ({7: 1.0}, "token 7.*0 to 4"),
        ({-1: 1.0}, "token -1"),
        ({0: torch.nan}, r"logit_bias\[0\]"),
        ({0: torch.inf}, r"logit_bias\[0\]"),
        (dict.fromkeys(range(5), -torch.inf), "forbids every token"),
    ],
)
def test_impossible_biases_are_refused(bias: dict[int, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_sampling(Sampling(logit_bias=bias), 5)

"""Bits per byte against closed form; acceptance against an actual rollout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paceline.zoo.evaluation import acceptance_by_depth, bits_per_byte
from paceline.zoo.network import embedding_of, greedy_continuation, new_network
from paceline.zoo.packing import Ids
from paceline.zoo.recipes import Recipe


def test_uniform_model_costs_log2_vocabulary_per_token(micro: Recipe, documents: list[Ids]) -> None:
    network = new_network(micro.shape, seed=1)
    with torch.no_grad():
        embedding_of(network).zero_()  # tied: all logits are zero
    tokens = sum(map(len, documents))
    for context in (16, 1000):
        measured = bits_per_byte(network, documents, text_bytes=5000, context=context)
        assert measured == pytest.approx(tokens * math.log2(micro.shape["vocab_size"]) / 5000, rel=1e-5)


def test_bits_per_byte_scores_every_token_once(micro: Recipe, documents: list[Ids]) -> None:
    """One long window must equal the sum over single predictions, end-of-text included."""
    network = new_network(micro.shape, seed=1).eval()
    document = documents[0]
    ids = torch.from_numpy(np.concatenate([document[-1:], document]).astype(np.int64))
    with torch.no_grad():
        log_probs = torch.log_softmax(network(input_ids=ids[None, :-1]).logits[0].double(), -1)
    expected = -float(log_probs.gather(1, ids[1:, None]).sum()) / math.log(2) / 100
    assert bits_per_byte(network, [document], text_bytes=100, context=4096) == pytest.approx(expected, rel=1e-5)


def test_a_model_accepts_itself(micro: Recipe) -> None:
    network = new_network(micro.shape, seed=1)
    prompts = [torch.tensor([20, 30, 40]), torch.tensor([50, 60])]
    assert acceptance_by_depth(network, network, prompts, tokens=12, depth=3) == [1.0, 1.0, 1.0]


def test_acceptance_equals_drafting_for_real(micro: Recipe) -> None:
    target, draft = (new_network(micro.shape, seed=1).eval() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own, other in zip(target.parameters(), draft.parameters(), strict=True):
            own.mul_(1 if own.ndim == 1 else 12)  # strong layers: otherwise an untrained tied model only repeats its last token
            other.copy_(own + 0.25 * own.abs().mean() * torch.randn(own.shape, generator=generator))
    prompt, tokens, depth = torch.tensor([20, 30, 40, 50]), 24, 3
    text = torch.cat([prompt, greedy_continuation(target, prompt, tokens + depth)])
    hits = np.zeros(depth)
    starts = range(len(prompt), len(text) - depth + 1)
    for start in starts:
        guess = greedy_continuation(draft, text[:start], depth)
        guess = torch.cat([guess, torch.full((depth - len(guess),), -1)])
        hits += (guess == text[start : start + depth]).int().cumprod(0).numpy()
    measured = acceptance_by_depth(draft, target, [prompt], tokens=tokens, depth=depth)
    assert measured == pytest.approx(list(hits / len(starts)))
    assert 0.0 < measured[0] < 1.0  # otherwise this compares nothing

"""Leads at equal forwards: zero on the frontier, right beside it, none outside; and the surroundings of a comparison."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.bench.denoising_frontier import Scored, agreement, lead
from paceline.bench.denoising_grounds import Ground
from paceline.bench.denoising_rows import Run
from paceline.bench.sort_reverse import EOS, MASK, Training, train
from paceline.engine.load import load

RANDOM = np.random.default_rng(0)


def scored(cost: float, score: float) -> Scored:
    noise = RANDOM.normal(0, 0.01, 200)
    return Scored(np.full(200, cost), score + noise - noise.mean())


def test_leads() -> None:
    family = [scored(4, 0.8), scored(8, 0.9), scored(6, 0.85)]
    on = lead(scored(7, 0.875), family)
    assert on is not None
    assert on[0] == pytest.approx(0, abs=1e-12)
    assert on[1][0] < 0 < on[1][1]
    above = lead(scored(5, 0.9), family)
    assert above is not None
    assert above[0] == pytest.approx(0.075)
    assert above[1][0] > 0.07
    assert lead(family[0], family) == (0.0, [0.0, 0.0])
    assert lead(scored(3, 0.9), family) is None
    assert lead(scored(9, 0.9), family) is None


def test_agreement_is_per_prompt() -> None:
    reference = Run("static", ((1, 2, 3, 4), (5, 6, 7, 8)), (4, 4), (8, 8), 0.0)
    found = agreement(Run("threshold", ((1, 2, 3, 9), (5, 6, 7, 8)), (2, 3), (8, 8), 0.0), reference)
    assert found.scores.tolist() == [0.75, 1.0]
    assert found.cost == 2.5


def test_grounds() -> None:
    model = load(train(Training(steps=0, sequences=64)), "static", device="cpu", kv_tokens=64, pack=False)
    ground = Ground("untrained", model, [[1]], 4, 8, frozenset({EOS}), lambda index, tokens: list(tokens) == [index])
    assert ground.method("static") == "static:block=8"
    assert ground.method("threshold:threshold=0.9") == "threshold:block=8,threshold=0.9"
    assert ground.said([3, EOS, EOS]) == 2
    assert ground.said([3, 4]) == 2
    assert ground.right(0, [0])
    assert MASK not in ground.ends

"""Commit rules and schedules against the page's numbers and plain loops; the reference's mistakes as negative controls."""

from __future__ import annotations

from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch

from paceline.denoising.bounds import divergence, same_argmax, total_variation
from paceline.denoising.canvas import Canvas
from paceline.denoising.guesses import Guesses
from paceline.denoising.rules import EntropyBound, Factor, Origin, Static, Threshold
from paceline.denoising.schedule import DreamSteps, EvenSteps, PerStep, Schedule

MASK = 99


def guesses(probabilities: list[float], open_: list[bool] | None = None, entropy: list[float] | None = None, first: int = 10) -> Guesses:
    count = len(probabilities)
    logprob = np.log(np.array(probabilities))
    return Guesses(
        np.arange(first, first + count),
        np.arange(count),
        logprob,
        logprob,
        np.array(entropy if entropy is not None else []),
        np.array(open_ if open_ is not None else [True] * count),
    )


def canvas(length: int, block: int = 0, prompt: int = 2, seed: int = 0) -> Canvas:
    return Canvas.start([1] * prompt, length, block=block or length, mask=MASK, seed=seed)


def counts(schedule: Schedule, length: int, block: int = 0) -> list[int]:
    """Positions decided in each step of the first block."""
    board, found = canvas(length, block), []
    for _ in range(schedule.steps(board)):
        count = schedule.count(board)
        found.append(count)
        where = board.open_in_block()[:count]
        board.commit(where, np.full(count, 5))
        board.step += 1
    return found


def test_even_schedule() -> None:
    assert counts(EvenSteps(12), 32) == [3] * 8 + [2] * 4
    assert counts(EvenSteps(32), 32) == [1] * 32
    assert counts(EvenSteps(8), 32, block=8) == [4, 4]
    assert counts(PerStep(3), 8) == [3, 3, 2]


def test_dream_schedule() -> None:
    """Rounding down leaves the first step empty and fills the last one."""
    assert counts(DreamSteps(256), 256) == [0] + [1] * 254 + [2]
    assert counts(DreamSteps(128), 256) == [1] + [2] * 126 + [3]
    thousand = counts(DreamSteps(1024), 1024)
    assert thousand[:3] == [0, 0, 1]
    assert thousand[-1] == 3
    assert sum(thousand) == 1024
    assert max(thousand[2:-1]) == 1


@pytest.mark.parametrize(("steps", "length"), [(1, 7), (5, 24), (24, 24), (37, 24), (100, 64)])
def test_dream_schedule_is_that_of_torch(steps: int, length: int) -> None:
    """The released code's own arithmetic, in its own float32."""
    grid, left, expected = torch.linspace(1, 1e-3, steps + 1), torch.tensor(float(length)), []
    for step in range(steps):
        count = int(left * (1 - grid[step + 1] / grid[step])) if step < steps - 1 else int(left)
        expected.append(count)
        left -= count
    assert counts(DreamSteps(steps), length) == expected


def test_parallel_rules_equal_plain_loops() -> None:
    random = np.random.default_rng(0)
    for _ in range(1000):
        count = int(random.integers(1, 12))
        chance = np.round(random.beta(2, 1, count), 1).clip(0.01, 0.99)  # many ties
        state = guesses(chance.tolist(), (random.random(count) < 0.7).tolist())
        where = [at for at in range(count) if state.open[at]]
        if not where:
            continue
        order = sorted(where, key=lambda at: (-chance[at], at))
        threshold, factor = float(np.round(random.random(), 1)), float(random.random() * 2)
        expected = {order[0]} | {at for at in where if np.log(chance[at]) >= (log(threshold) if threshold else -np.inf)}
        assert set(np.flatnonzero(Threshold(threshold).choose(state, canvas(4)))) == expected
        most = 1
        while most < len(order) and chance[order[most]] >= 1 - factor / (most + 2):
            most += 1
        assert set(np.flatnonzero(Factor(factor).choose(state, canvas(4)))) == set(order[:most])


def test_factor_stops_at_the_first_rank_that_fails() -> None:
    """Released code commits both of [.9, .1] at f = 1, because it looks for the first failure only before the last rank."""
    assert Factor(1.0).choose(guesses([0.9, 0.1]), canvas(4)).tolist() == [True, False]
    assert Factor(1.0).choose(guesses([0.99, 0.7, 0.99]), canvas(4)).tolist() == [True, False, True]
    assert Factor(1.0).choose(guesses([0.99, 0.76, 0.99]), canvas(4)).tolist() == [True, True, True]


def test_factor_bound_keeps_the_joint_argmax() -> None:
    """With f = 1 the tokens committed together are the most likely ones together, in random joint laws of two and three positions."""
    random = np.random.default_rng(1)
    parallel = 0
    for _ in range(2000):
        joint = random.dirichlet(np.full(8, 0.08)).reshape(2, 2, 2)
        marginals = [joint.sum(axis=tuple(other for other in range(3) if other != at)) for at in range(3)]
        chosen = np.flatnonzero(Factor(1.0).choose(guesses([max(law) for law in marginals]), canvas(4)))
        rest = tuple(at for at in range(3) if at not in chosen)
        together = joint.sum(axis=rest)
        if together.max() - np.sort(together.ravel())[-2] > 1e-9:
            assert np.unravel_index(together.argmax(), together.shape) == tuple(int(marginals[at].argmax()) for at in chosen)
        parallel += len(chosen) > 1
    assert parallel > 500


@pytest.mark.parametrize("positions", [2, 3])
def test_bounds_hold_on_random_joint_laws(positions: int) -> None:
    random, tight = np.random.default_rng(2), 0.0
    vocabulary = 3
    for _ in range(1500):
        joint = random.dirichlet(np.full(vocabulary**positions, 0.03)).reshape((vocabulary,) * positions) + 1e-12
        joint /= joint.sum()
        laws = [joint.sum(axis=tuple(other for other in range(positions) if other != at)) for at in range(positions)]
        eps = 1 - min(float(law.max()) for law in laws) + 1e-9
        product = laws[0]
        for law in laws[1:]:
            product = np.multiply.outer(product, law)
        if same_argmax(positions, eps):
            assert product.argmax() == joint.argmax()
        distance = 0.5 * float(np.abs(product - joint).sum())
        assert distance <= total_variation(positions, eps)
        if eps < 0.5:
            assert float((joint * np.log(joint / product)).sum()) <= divergence(positions, eps, vocabulary) + 1e-9
        tight = max(tight, distance / total_variation(positions, eps))
    assert tight > 0.2


def test_the_greedy_bound_is_tight() -> None:
    """Just beyond it, two positions of a joint law have another mode than their product."""
    eps = 1 / 3 + 1e-3
    joint = np.array([[1 - 2 * eps, eps], [eps, 0.0]])
    assert not same_argmax(2, eps)
    assert joint.sum(1).argmax() == joint.sum(0).argmax() == 0
    assert joint.argmax() != 0


def test_top_k_is_nested_and_ties_go_to_the_lowest_position() -> None:
    state = guesses([0.5, 0.9, 0.5, 0.9, 0.5], [True, True, True, True, False])
    assert state.ranked().tolist() == [1, 3, 0, 2]
    chosen = [set(np.flatnonzero(state.best(count))) for count in range(6)]
    assert all(smaller <= larger for smaller, larger in pairwise(chosen))
    assert chosen[3] == {0, 1, 3}
    assert chosen[5] == {0, 1, 2, 3}


def test_confidence_in_half_precision_would_lose_the_order() -> None:
    """Why confidences are log-probabilities in float32: as bfloat16 probabilities these would all be 1."""
    logits = torch.tensor([[12.0, 0.0], [14.0, 0.0], [13.0, 0.0]])
    assert logits.bfloat16().softmax(-1)[:, 0].unique().numel() == 1
    assert logits.log_softmax(-1)[:, 0].argsort(descending=True).tolist() == [1, 2, 0]


def test_entropy_bound() -> None:
    state = guesses([0.9, 0.9, 0.9, 0.9], [True, True, True, False], [0.2, 0.1, 0.3, 0.0])
    assert EntropyBound(0.35).choose(state, canvas(4)).tolist() == [True, True, False, False]
    assert EntropyBound(0.61).choose(state, canvas(4)).tolist() == [True, True, True, False]
    assert EntropyBound(0.0).choose(state, canvas(4)).tolist() == [False, True, False, False]


def test_least_of_the_dynamic_strategy() -> None:
    state = guesses([0.9, 0.5, 0.6, 0.4])
    assert Threshold(0.85, least=2).choose(state, canvas(4)).tolist() == [True, False, True, False]
    assert Threshold(0.45, least=2).choose(state, canvas(4)).tolist() == [True, True, True, False]


def test_orders() -> None:
    state, board = guesses([0.2, 0.9, 0.5]), canvas(3)
    assert Static(PerStep(2)).choose(state, board).tolist() == [False, True, True]
    assert Static(PerStep(2), "sequential").choose(state, board).tolist() == [True, True, False]
    first = [seed for seed in range(300) if Static(PerStep(1), "random").choose(state, canvas(3, seed=seed))[1]]
    assert 60 < len(first) < 140  # a third


def test_drawn_order_follows_its_odds() -> None:
    """`alg_temp`: the first of several draws without replacement has odds exp(confidence / temperature)."""
    state = guesses([0.2, 0.9, 0.5])
    state = Guesses(state.positions, state.tokens, state.logprob, np.exp(state.logprob), state.entropy, state.open)
    odds = np.exp(np.array([0.2, 0.9, 0.5]) / 0.4)
    hits = np.zeros(3)
    for seed in range(2000):
        hits += Static(PerStep(1), temperature=0.4).choose(state, canvas(3, seed=seed))
    assert np.abs(hits / 2000 - odds / odds.sum()).max() < 0.04


def test_origin_decides_each_position_with_its_chance() -> None:
    rule, state = Origin(DreamSteps(4)), guesses([0.5] * 8)
    share = np.mean([rule.choose(state, canvas(8, seed=seed)).mean() for seed in range(500)])
    assert abs(share - (1 - (1 - (1 - 1e-3) / 4))) < 0.02
    last = canvas(8)
    last.step = 3
    assert rule.choose(state, last).all()

"""Ties are told from violations by how far logits would have to be off."""

from __future__ import annotations

import pytest
import torch

from paceline.bench.audit.agreement import yardstick
from paceline.bench.audit.margins import SLACK, PlainPath, tolerance
from paceline.bench.audit.rig import Rig
from paceline.bench.audit.toy import toy_decoder
from paceline.core.sampling import Sampling
from paceline.engine.load import load
from paceline.models.decoder import Decoder

PROMPT = [1, 2, 3, 4]


def twins(distance: float) -> Decoder:
    """A toy whose two likeliest tokens behind the prompt differ by a small relative change of one head row."""
    decoder = toy_decoder(8, seed=1, dtype=torch.float32)
    best = int(PlainPath(decoder).logits(PROMPT).argmax())
    assert decoder.head is not None
    other = (best + 3) % 8
    decoder.head.weight[other] = decoder.head.weight[best] * (1 - distance)
    return decoder


def test_equal_logits_are_a_tie_and_distant_ones_are_not() -> None:
    path = PlainPath(twins(0.0))
    order = path.logits(PROMPT).argsort(descending=True, stable=True).tolist()
    near = path.margin(PROMPT, [], Sampling(), order[0], order[1])
    assert near.top2 == 0.0
    assert near.is_tie
    far = path.margin(PROMPT, [], Sampling(), order[0], order[4])
    assert not far.is_tie


@pytest.mark.parametrize(("distance", "tie"), [(1e-7, True), (1e-6, True), (1e-3, False)])
def test_the_tolerance_is_what_decides(distance: float, tie: bool) -> None:
    path = PlainPath(twins(distance))
    logits = path.logits(PROMPT)
    first, second = logits.topk(2).indices.tolist()
    margin = path.margin(PROMPT, [], Sampling(), first, second)
    assert margin.tolerance == tolerance(logits, torch.float32) == SLACK[torch.float32] * 2**-23 * float(logits.abs().max())
    assert margin.is_tie is tie
    # Raising one token and lowering all others by half the margin makes them equal.
    assert margin.gap == pytest.approx(float(logits[first] - logits[second]) / 2, rel=1e-2, abs=1e-9)


def test_penalties_count() -> None:
    """The gap is measured behind the penalties: a token that they forbid is far away, however large its logit."""
    path = PlainPath(twins(0.0))
    order = path.logits(PROMPT).argsort(descending=True, stable=True).tolist()
    forbidden = Sampling(logit_bias={order[1]: float("-inf")})
    margin = path.margin(PROMPT, [], forbidden, order[0], order[1])
    assert margin.gap == float("inf")
    assert margin.top2 > 0.0  # to the third, now that the second is out


def test_sampling_ties_lie_at_the_borders_of_the_cumulative_sums() -> None:
    """Of many seeds, the few whose number falls close to a border are near-ties; the gap follows the distance to it."""
    decoder = toy_decoder(8, seed=1, dtype=torch.float32)
    path = PlainPath(decoder)
    law = path.logits(PROMPT).softmax(-1)
    sums = law.cumsum(-1)
    from paceline.core.rng import Purpose, uniform

    numbers = {seed: uniform(seed, len(PROMPT), Purpose.TARGET) for seed in range(400)}
    token = int(torch.searchsorted(sums, torch.tensor(numbers[0], dtype=sums.dtype), right=True))
    inside = [seed for seed, u in numbers.items() if float(sums[token] - law[token]) < u < float(sums[token])]
    gaps = {seed: path.margin(PROMPT, [], Sampling(temperature=1.0, seed=seed), token, token + 1).gap for seed in inside[:12]}
    distances = {seed: float(sums[token]) - numbers[seed] for seed in gaps}
    by_gap = sorted(gaps, key=gaps.__getitem__)
    assert by_gap[0] == min(distances, key=distances.__getitem__)
    assert gaps[by_gap[-1]] > gaps[by_gap[0]]
    assert all(path.margin(PROMPT, [], Sampling(temperature=1.0, seed=seed), token, token).gap == 0.0 for seed in by_gap[:2])


@pytest.mark.parametrize("dtype", list(SLACK))
def test_rounding_stays_well_within_the_slack(dtype: torch.dtype) -> None:
    """What the slack was chosen by: forwards of one row against forwards of many."""
    decoder = toy_decoder(64, seed=1, layers=8, dtype=dtype)
    rig = Rig(load(decoder, "none", device="cpu", kv_tokens=4, pack=False))
    measure = yardstick(rig, [tuple((7 * at + at * at) % 64 for at in range(20))], 24)
    largest = max(float(row.abs().max()) for row in measure.heard.values())
    assert 0 < measure.noise < 0.75 * SLACK[dtype] * torch.finfo(dtype).eps * largest

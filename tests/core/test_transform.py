"""From logits to tokens: parity with `transformers`, ties, degenerate rows, and independence of the rows beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paceline.core.sampling import Sampling
from paceline.core.transform import INVALID, argmax_ids, draw, largest, target_distribution, top

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def oracle(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The same law by `transformers`, in its order."""
    none = torch.zeros(len(logits), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(sampling.temperature)(none, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(none, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(none, scores)
    if sampling.min_p > 0:
        scores = MinPLogitsWarper(sampling.min_p)(none, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("vocabulary", [7, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 10_000},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 6, "top_p": 0.8, "min_p": 0.05},
    ],
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_parity_with_transformers(options: dict[str, Any], temperature: float, vocabulary: int) -> None:
    sampling = Sampling(temperature=temperature, **options)
    logits = random_logits(20, vocabulary)
    law = target_distribution(logits, sampling)
    expected = oracle(logits, sampling)
    assert torch.equal(law > 0, expected > 0)
    torch.testing.assert_close(law, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_takes_the_lowest_of_equal_ids(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    for vocabulary in (1, 2, 17, 300, 5000):
        logits = torch.randint(0, 4, (9, vocabulary), generator=generator).to(device, dtype)
        assert argmax_ids(logits) == [row.index(max(row)) for row in logits.tolist()]
    assert argmax_ids(torch.full((1, 9), -torch.inf, dtype=dtype, device=device)) == [0]
    assert argmax_ids(torch.tensor([[-0.0, 0.0]], dtype=dtype, device=device)) == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_reports_nan_wherever_it_hides(dtype: torch.dtype, device: str) -> None:
    logits = torch.ones(3, 100).to(device, dtype)
    logits[1, 63] = torch.nan
    assert argmax_ids(logits) == [0, INVALID, 0]


def test_argmax_of_a_transposed_view() -> None:
    logits = random_logits(50, 4).T
    assert argmax_ids(logits) == logits.argmax(-1).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_largest_keeps_exactly_k_and_of_equals_the_lowest(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    scores = torch.tensor([values], dtype=torch.float32)
    assert largest(scores, count)[0].nonzero().flatten().tolist() == sorted(expected)
    best, ids = top(scores, count)
    assert ids[0].tolist() == expected
    assert best[0].tolist() == [values[token] for token in expected]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_sufficient_set(values: list[int], top_p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    plain = logits.softmax(-1)[0].tolist()
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    kept, mass = [], 0.0
    for token in order:
        if kept and mass >= top_p - 1e-12:
            break
        kept.append(token)
        mass += plain[token]
    law = target_distribution(logits, Sampling(temperature=1.0, top_p=top_p))[0]
    found = law.nonzero().flatten().tolist()
    if abs(mass - top_p) > 1e-9 and abs(mass - plain[kept[-1]] - top_p) > 1e-9:  # else rounding decides
        assert found == sorted(kept)
    assert order[0] in found
    assert law.sum().item() == pytest.approx(1, abs=1e-12)


def test_top_k_ties_go_to_the_lowest_ids() -> None:
    law = target_distribution(torch.zeros(1, 6), Sampling(temperature=1.0, top_k=2))
    assert law.tolist() == [[0.5, 0.5, 0, 0, 0, 0]]


def test_a_tiny_top_p_is_the_argmax() -> None:
    logits = random_logits(30, 50)
    law = target_distribution(logits, Sampling(temperature=2.0, top_p=1e-9))
    assert torch.equal(law, target_distribution(logits, Sampling()))


def test_greedy_is_one_hot_at_the_lowest_id() -> None:
    assert target_distribution(torch.tensor([[1.0, 3, 3]]), Sampling()).tolist() == [[0, 1, 0]]
    assert target_distribution(torch.tensor([[1.0, torch.nan, 3]]), Sampling()).isnan().all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_tiny_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[50.0, -1e4, 50.0, 49.0]])
    assert target_distribution(logits, Sampling(temperature=temperature)).tolist() == [[0.5, 0, 0.5, 0]]


def test_dtypes_widen_and_inputs_stay() -> None:
    logits = random_logits(2, 9)
    before = logits.clone()
    sampling = Sampling(temperature=0.5, top_k=4, top_p=0.9, min_p=0.01)
    assert target_distribution(logits, sampling).dtype == torch.float32
    assert target_distribution(logits.bfloat16(), sampling).dtype == torch.float32
    assert target_distribution(logits.double(), sampling).dtype == torch.float64
    assert torch.equal(logits, before)


@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 100, "top_p": 0.95, "min_p": 0.01}])
def test_a_row_does_not_depend_on_its_neighbours(options: dict[str, Any]) -> None:
    """Bit for bit; otherwise batch composition could change a sample."""
    logits, sampling = random_logits(8, 5000), Sampling(temperature=0.8, **options)
    together = target_distribution(logits, sampling)
    for row in range(8):
        assert torch.equal(target_distribution(logits[row : row + 1], sampling)[0], together[row])
    numbers = [row / 8 for row in range(8)]
    assert draw(together, numbers) == [draw(together[row : row + 1], [numbers[row]])[0] for row in range(8)]


@pytest.mark.parametrize("device", DEVICES)
def test_draw_inverts_the_cumulative_sum(device: str) -> None:
    law = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], device=device)
    expected = {0.0: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, 1 - 2**-53: 4}
    assert draw(law.expand(len(expected), -1), list(expected)) == list(expected.values())
    assert draw(law.expand(len(expected), -1) * 7, list(expected)) == list(expected.values())


def test_draw_never_returns_a_token_without_mass() -> None:
    logits = random_logits(200, 64)
    law = target_distribution(logits, Sampling(temperature=1.0, top_k=3))
    for number in (0.0, 0.5, 1 - 2**-53):
        for row, token in enumerate(draw(law, [number] * 200)):
            assert law[row, token] > 0


@pytest.mark.parametrize("device", DEVICES)
def test_rows_without_a_law_are_invalid(device: str) -> None:
    rows = torch.tensor([[0.5, torch.nan, 0.5], [0.0, 0.0, 0.0], [1.0, torch.inf, 0.0], [0.0, 1.0, 0.0]], device=device)
    assert draw(rows, [0.0, 0.9, 0.5, 0.5]) == [INVALID, INVALID, INVALID, 1]
    bad = torch.tensor([[1.0, torch.nan, 2.0], [torch.inf, 0.0, 1.0], [-torch.inf] * 3], device=device)
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 2, "top_p": 0.5, "min_p": 0.5}):
        law = target_distribution(bad, Sampling(temperature=1.0, **options))
        assert draw(law, [0.3] * 3) == [INVALID] * 3

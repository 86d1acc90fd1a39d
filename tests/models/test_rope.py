"""Rotary frequencies and tables against the oracle's formulas, and against themselves."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from paceline.core.errors import CheckpointError
from paceline.models.config import RopeSpec
from paceline.models.families import decoder_config
from paceline.models.rope import RotaryTable, inverse_frequencies

SHORT, LONG = [1.0 + j / 10 for j in range(16)], [2.0 + j for j in range(16)]
RULES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn": {"factor": 16.0, "original_max_position_embeddings": 256},
    "longrope": {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 512},
}


def _config(rule: str) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": rule, "rope_theta": 10000.0, **RULES[rule]},
        architectures=["LlamaForCausalLM"],
    )


@pytest.mark.parametrize("length", [None, 100, 600, 5000])
@pytest.mark.parametrize("rule", RULES)
def test_frequencies_of_the_oracle(rule: str, length: int | None) -> None:
    config = _config(rule)
    expected, factor = ROPE_INIT_FUNCTIONS[rule](config, torch.device("cpu"), seq_len=length)
    spec = decoder_config(config).layers[0].mixer.rope
    assert spec is not None
    found, scale = inverse_frequencies(spec, length)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert scale == pytest.approx(factor, rel=1e-12)


def test_table_holds_what_the_formula_says() -> None:
    spec = RopeSpec(theta=100.0, dims=6)
    table = RotaryTable(spec, dtype=torch.float64)
    table.reserve(71)
    turn = table.rows(torch.tensor([0, 70, 3, 3]))
    for row, position in enumerate((0, 70, 3, 3)):
        for j in range(3):
            angle = position * 100.0 ** (-2 * j / 6)
            assert turn.cos[row, 0, [j, j + 3]].tolist() == pytest.approx([math.cos(angle)] * 2, abs=1e-12)
            assert turn.sin[row, 0, [j, j + 3]].tolist() == pytest.approx([-math.sin(angle), math.sin(angle)], abs=1e-12)


def test_a_position_rotates_the_same_however_the_table_grew() -> None:
    spec = RopeSpec(theta=10000.0, dims=64, kind="dynamic", parameters=(("factor", 2.0),), original_length=128)
    grown, whole = RotaryTable(spec, 1000), RotaryTable(spec, 1000)
    whole.reserve(1000)
    for top in (1, 63, 64, 65, 127, 128, 129, 999):
        positions = torch.tensor([top, 0, top // 2])
        grown.reserve(top + 1)
        found, expected = grown.rows(positions), whole.rows(positions)
        assert torch.equal(found.cos, expected.cos)
        assert torch.equal(found.sin, expected.sin)
    assert grown.held == 1024


def test_the_table_is_as_short_as_what_was_asked() -> None:
    table = RotaryTable(RopeSpec(theta=10000.0, dims=8), 1 << 17)
    table.reserve(6)
    assert len(table.factors.cos) == 64


def test_a_table_grown_in_inference_serves_training() -> None:
    table = RotaryTable(RopeSpec(theta=10000.0, dims=8))
    with torch.inference_mode():
        table.reserve(6)
    cos = table.rows(torch.tensor([5])).cos
    weight = torch.ones(1, 1, 8, requires_grad=True)
    (weight * cos).sum().backward()
    assert torch.equal(weight.grad, cos)


def test_factors_are_computed_wide_and_rounded_once() -> None:
    spec = RopeSpec(theta=10000.0, dims=8)
    narrow, wide = RotaryTable(spec, dtype=torch.bfloat16), RotaryTable(spec, dtype=torch.float32)
    narrow.reserve(200)
    wide.reserve(200)
    assert torch.equal(narrow.factors.cos, wide.factors.cos.bfloat16())
    assert not torch.equal(narrow.factors.cos.float(), wide.factors.cos), "rounding shows, so the comparison above says something"


@pytest.mark.parametrize(("kind", "missing"), [("linear", "factor"), ("llama3", "factor"), ("longrope", "short_factor")])
def test_a_missing_parameter_is_named(kind: str, missing: str) -> None:
    with pytest.raises(CheckpointError, match=missing):
        inverse_frequencies(RopeSpec(theta=10000.0, dims=8, kind=kind, original_length=64))  # type: ignore[arg-type]

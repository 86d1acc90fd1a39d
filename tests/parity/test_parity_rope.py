"""Every rotary scaling rule gives the logits of `transformers`, below and above the trained context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_memory import full
from zoo_of_families import double_throughout, prompt, small_model

from paceline.models.from_transformers import share_decoder

TRAINED = 32
HALF = 4  # rotated pairs of the small models' heads
SHORT, LONG = [1.0, 1.1, 1.3, 1.6], [1.5, 2.5, 4.0, 8.0]
RULES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-untruncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    "yarn-temperature": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG},
    "longrope-implied": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
}
NEEDS_TRAINED = ("llama3", "yarn", "longrope")


def _changes(rule: str) -> dict[str, Any]:
    parameters = {"rope_theta": 500.0, **RULES[rule]}
    if parameters["rope_type"] in NEEDS_TRAINED:
        return {"max_position_embeddings": 4 * TRAINED, "rope_parameters": {**parameters, "original_max_position_embeddings": TRAINED}}
    return {"max_position_embeddings": TRAINED, "rope_parameters": parameters}


@pytest.mark.parametrize("length", [TRAINED - 3, TRAINED, TRAINED + 1, 3 * TRAINED])
@pytest.mark.parametrize("rule", RULES)
def test_full_forward(rule: str, length: int) -> None:
    ids = prompt(length)
    with double_throughout():
        model = small_model("llama", **_changes(rule))
        expected = model(torch.tensor([ids])).logits[0]
    found = full(share_decoder(model, context=length), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [TRAINED, 3 * TRAINED])
def test_phi3_longrope_with_partial_rotation(length: int) -> None:
    """Phi-3 keeps the trained context outside its rope parameters, and may rotate part of each head (Phi-4 mini)."""
    parameters = {"rope_type": "longrope", "short_factor": SHORT[:2], "long_factor": LONG[:2], "partial_rotary_factor": 0.5}
    changes = {
        "rope_parameters": {"rope_theta": 500.0, **parameters},
        "original_max_position_embeddings": TRAINED,
        "max_position_embeddings": 4 * TRAINED,
    }
    ids = prompt(length)
    with double_throughout():
        model = small_model("phi3", **changes)
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(full(share_decoder(model, context=length), ids), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["dynamic", "longrope"])
def test_the_regime_matters(rule: str) -> None:
    """Control: with the table of the other regime, the same comparison fails."""
    ids = prompt(3 * TRAINED)
    with double_throughout():
        model = small_model("llama", **_changes(rule))
        expected = model(torch.tensor([ids])).logits[0]
    assert (full(share_decoder(model, context=TRAINED), ids) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_float32_as_released(rule: str) -> None:
    ids = prompt(2 * TRAINED)
    model = small_model("llama", **_changes(rule))
    expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(full(share_decoder(model, context=len(ids)), ids), expected, rtol=0, atol=1e-4)

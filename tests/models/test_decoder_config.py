"""What the family table makes of configs: windows, norms, experts, rotary rules, ids; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedConfig

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.checkpoint import read_config
from paceline.models.diffusion_configs import TRANSLATIONS
from paceline.models.families import FAMILIES, decoder_config, stop_ids

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def _config(prefix: str, layers: int = 4, **entries: Any) -> PreTrainedConfig:
    kind = getattr(transformers, f"{prefix}Config")
    return kind(**SMALL | {"num_hidden_layers": layers} | entries)


def _on_disk(folder: Path, **entries: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(SMALL | {"num_hidden_layers": 2} | entries))
    return folder


def test_every_row_is_a_class_of_transformers() -> None:
    for family in FAMILIES:
        if (family.architecture, family.model_type) in TRANSLATIONS:  # remote code, see test_diffusion_layouts
            continue
        assert getattr(transformers, family.architecture).config_class.model_type == family.model_type


def test_windows_follow_layer_types() -> None:
    qwen = decoder_config(_config("Qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=3))
    assert [layer.mixer.window for layer in qwen.layers] == [None, None, None, 9]
    assert [layer.mixer.window for layer in decoder_config(_config("Qwen2", sliding_window=9)).layers] == [None] * 4
    gemma = decoder_config(_config("Gemma2", sliding_window=9))
    assert [layer.mixer.window for layer in gemma.layers] == [9, None, 9, None]
    mistral = decoder_config(_config("Mistral", sliding_window=9))
    assert [layer.mixer.window for layer in mistral.layers] == [9] * 4


def test_gemma3_has_two_rotations() -> None:
    config = decoder_config(_config("Gemma3Text", 7))
    local, everywhere = config.layers[0].mixer.rope, config.layers[5].mixer.rope
    assert local is not None
    assert everywhere is not None
    assert (local.theta, everywhere.theta) == (10_000.0, 1_000_000.0)
    assert config.embed_scale == 32**0.5


def test_qwen3_moe_places_experts_by_step_and_list() -> None:
    config = decoder_config(
        _config("Qwen3Moe", 6, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=True)
    )
    assert [layer.feed_forward.experts for layer in config.layers] == [0, 4, 0, 0, 0, 4]
    assert config.layers[1].feed_forward.width == 768
    assert config.layers[0].feed_forward.width == 48
    assert config.layers[1].feed_forward.normalise


def test_context_overrides_the_longest_sequence() -> None:
    assert decoder_config(_config("Llama")).max_positions == 2048
    assert decoder_config(_config("Llama"), context=77).max_positions == 77
    with pytest.raises(UsageError, match="context=0"):
        decoder_config(_config("Llama"), context=0)


@pytest.mark.parametrize(("values", "ids"), [((None,), ()), ((2,), (2,)), (([3, 1], None, 1, 0), (3, 1, 0))])
def test_stop_ids(values: tuple[Any, ...], ids: tuple[int, ...]) -> None:
    assert stop_ids(*values) == ids


def test_configs_written_before_version_5(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` at the top, the rule under `type`, no head size."""
    _on_disk(
        tmp_path,
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        rope_theta=5000.0,
        rope_scaling={"type": "linear", "factor": 3.0},
        torch_dtype="bfloat16",
    )
    rope = decoder_config(read_config(tmp_path)).layers[0].mixer.rope
    assert rope is not None
    assert (rope.kind, rope.theta, rope.dims, dict(rope.parameters)) == ("linear", 5000.0, 8, {"factor": 3.0})


def test_phi3_written_before_version_5(tmp_path: Path) -> None:
    """The released 128k models: trained context outside, factor implied by the two context lengths."""
    _on_disk(
        tmp_path,
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        original_max_position_embeddings=16,
        max_position_embeddings=128,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        pad_token_id=0,
    )
    rope = decoder_config(read_config(tmp_path)).layers[0].mixer.rope
    assert rope is not None
    assert (rope.kind, rope.original_length, dict(rope.parameters)["factor"]) == ("longrope", 16, 8.0)


def test_llama3_parameters(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    _on_disk(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama", rope_scaling=scaling, max_position_embeddings=131072)
    rope = decoder_config(read_config(tmp_path)).layers[0].mixer.rope
    assert rope is not None
    assert rope.original_length == 8192
    assert dict(rope.parameters) == {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"architectures": ["FooForCausalLM"], "model_type": "foo"}, ["FooForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"]),
        ({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}, ["LlamaForSequenceClassification"]),
        ({"model_type": "gpt2"}, ["gpt2", "supported are"]),
        ({}, ["None", "supported are"]),
    ],
)
def test_unknown_architectures_are_named(tmp_path: Path, entries: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as error:
        read_config(_on_disk(tmp_path, **entries))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("prefix", "entries", "word"),
    [
        ("Llama", {"mlp_bias": True}, "mlp_bias"),
        ("Llama", {"hidden_act": "mish"}, "mish"),
        ("Llama", {"num_key_value_heads": 3}, "3 key-value heads"),
        ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Qwen2", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "layer_types[3]"),
        ("Llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("Llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "proportional"),
    ],
)
def test_unsupported_settings_are_named(prefix: str, entries: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError) as error:
        decoder_config(_config(prefix, **entries))
    assert word in str(error.value)


def test_an_invalid_config_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_config(_on_disk(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=33))
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)

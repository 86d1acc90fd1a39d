"""What `load` refuses to open, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from paceline.bench.audit.toy import toy_decoder
from paceline.core.errors import CheckpointError, UsageError
from paceline.engine.load import load
from paceline.engine.opening import named_device


@pytest.mark.parametrize("model", [None, 3, object(), ["pocket-code"]])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(UsageError, match=f"a {type(model).__name__} is no model"):
        load(model, "none", device="cpu")


@pytest.mark.parametrize("device", ["meta", "mps", "tpu", "cpu:x", 3.5, "cuda:999"])
def test_what_is_no_device(device: Any) -> None:
    with pytest.raises(UsageError, match="device="):
        named_device(device)


@pytest.mark.parametrize("name", ["max_sequences", "max_rows"])
def test_limits_that_let_nobody_run_are_refused_at_once(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0 must be at least 1"):
        load(toy_decoder(8), "none", device="cpu", kv_tokens=40, pack=False, **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"version": "1.0", "model": {"type": "unheard of"}}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    """Prompts could still be ids, but a file that is there and unreadable was not meant to be ignored."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"its tokenizer cannot be read \(") as caught:
        load(tmp_path, "none", device="cpu", kv_tokens=40)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)

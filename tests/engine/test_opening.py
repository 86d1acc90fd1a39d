"""What `load` refuses to open, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from paceline.bench.audit.toy import toy_decoder
from paceline.core.errors import CheckpointError, UsageError
from paceline.engine.load import load
from paceline.engine.opening import named_device
from paceline.zoo.registry import MODELS_FOLDER


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


def test_a_tokenizer_is_read_without_remarks_on_the_model(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    logging.enable_propagation()
    try:
        load("pocket-dlm", kv_tokens=256)
        assert logging.get_verbosity() == logging.WARNING, "the user's own setting is back"
        assert "model of type" not in caplog.text
        AutoTokenizer.from_pretrained(MODELS_FOLDER / "pocket-dlm")
        assert "model of type" in caplog.text, "the control: this is what is kept away"
    finally:
        logging.disable_propagation()
        logging.set_verbosity(before)

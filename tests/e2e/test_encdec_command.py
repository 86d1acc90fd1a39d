"""The command line on an encoder-decoder: the prompt is the source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app

VOCABULARY = 400  # of the tiny model's tokenizer


@pytest.fixture(scope="module")
def corrector(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BART with the tokenizer of the tiny model."""
    import shutil

    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "corrector"
    sizes = {
        f"{side}_{part}": size for side in ("encoder", "decoder") for part, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    torch.manual_seed(5)
    config = BartConfig(vocab_size=VOCABULARY, d_model=32, max_position_embeddings=128, init_std=0.3, eos_token_id=None, **sizes)
    BartForConditionalGeneration(config).save_pretrained(folder)
    for file in Path(tiny).glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


def test_generate(corrector: str) -> None:
    asked = [
        "generate",
        corrector,
        "-p",
        "def name_3(value):\n    return value",
        "--method",
        "iad",
        "--max-tokens",
        "12",
        "--compare",
        "--json",
    ]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert len(record["token_ids"]) == 12
    assert record["stats"]["drafted"] > 0
    assert record["compare"]["tokens_identical"]


def test_a_source_that_is_too_long_is_one_clear_line(corrector: str) -> None:
    found = CliRunner().invoke(app, ["generate", corrector, "--ids", "7 " * 129])
    assert found.exit_code == 2
    assert "the source has 129 tokens and the model's encoder reads 128" in " ".join(found.output.split())

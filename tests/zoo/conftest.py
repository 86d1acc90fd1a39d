"""A tokenizer, documents and a recipe small enough to train in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from paceline.zoo.packing import Ids, encode_documents
from paceline.zoo.recipes import RECIPES, Phase, Recipe
from paceline.zoo.tokenizer import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = [
    f'"""Module {n}."""\n\nimport os\n\n\nclass Thing{n}:\n    def __init__(self, value={n}):\n        self.value_{n} = value\n\n'
    f"    def double(self):\n        return self.value_{n} * 2\n" * 4
    for n in range(12)
]
VOCABULARY = 400


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twelve small modules."""
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Trained, saved and loaded again: what users get."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, VOCABULARY).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def documents(tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    return encode_documents(TEXTS, tokenizer)


@pytest.fixture(scope="session")
def micro() -> Recipe:
    """Eight steps of 64 tokens, two phases."""
    full = RECIPES["pocket-code"]
    shape = {
        **full.shape,
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return replace(full, shape=shape, tokens=512, tokens_per_step=64, warmup_tokens=128, phases=(Phase(0.0, 16), Phase(0.5, 32)))

"""A checkpoint folder small enough to decode in milliseconds, with a tokenizer and a chat template, and one without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

VOCABULARY = 400
TEXTS = [f"def name_{n}(value):\n    return value * {n} + 1\n\n\nclass Thing{n}:\n    size = {n}\n" for n in range(40)]


def save_tiny(folder: Path, seed: int) -> Path:
    """A random Llama whose greedy output wanders, and a tokenizer learned from `TEXTS`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from paceline.zoo.tokenizer import train_tokenizer

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,  # outputs end by length
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)
    train_tokenizer(TEXTS, VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny model with tokenizer and chat template. As its own draft model it is always right."""
    return str(save_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3))


@pytest.fixture(scope="session")
def bare(tiny: str) -> str:
    """The same weights without a tokenizer."""
    folder = Path(tiny).with_name("bare")
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(tiny) / name, folder / name)
    return str(folder)

"""Checkpoint folders that peers are tested on: random tiny Llamas in the layout of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest


def save_llama(folder: Path, *, seed: int, tied: bool = False, **shape: int) -> Path:
    """A random Llama whose greedy output wanders (wide initialisation), so that equal tokens mean something."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
    }
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(sizes | shape), tie_word_embeddings=tied, initializer_range=0.2))
    torch.set_rng_state(generator_state)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped queries, untied head."""
    return save_llama(tmp_path_factory.mktemp("llama"), seed=1)


@pytest.fixture(scope="session")
def draft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, smaller model of the same vocabulary."""
    return save_llama(tmp_path_factory.mktemp("draft"), seed=2, tied=True, hidden_size=32, num_hidden_layers=1)

"""A small Llama checkpoint on disk, as `transformers` saves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=53,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    ).eval()


@pytest.fixture
def folder(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path, max_shard_size="12KB")
    return tmp_path

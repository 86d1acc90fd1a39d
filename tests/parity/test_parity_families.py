"""Every family computes what `transformers` computes: logits, greedy tokens, shared or loaded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_memory import full, greedy
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from zoo_of_families import NAMES, double_throughout, prompt, small_config, small_model

from paceline.models.checkpoint import load_decoder
from paceline.models.from_transformers import share_decoder

LENGTH = 40


@pytest.mark.parametrize("name", NAMES)
def test_float32_logits(name: str) -> None:
    model, ids = small_model(name), prompt(LENGTH)
    expected = model(torch.tensor([ids])).logits[0]
    found = full(share_decoder(model), ids)
    assert expected.std() > 0.3  # the comparison says something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_float64_logits(name: str) -> None:
    """With the oracle's float32 islands lifted, only real differences are left."""
    ids = prompt(LENGTH, seed=1)
    with double_throughout():
        model = small_model(name, seed=1)
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(full(share_decoder(model), ids), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name: str) -> None:
    model, ids = small_model(name, seed=2), prompt(11, seed=2)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
    assert greedy(share_decoder(model), ids, 64) == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """A checkpoint on disk (fused, per expert, tied as the family releases it) gives the very same weights."""
    model, ids = small_model(name), prompt(LENGTH)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    decoder, config = load_decoder(tmp_path)
    assert config.model_type == model.config.model_type
    assert decoder.dtype is torch.float32
    shared = share_decoder(model)
    assert decoder.config == shared.config
    assert torch.equal(full(decoder, ids), full(shared, ids))


def test_the_language_model_inside_gemma3_with_images(tmp_path: Path) -> None:
    """Released Gemma 3 models from 4B up come with an image tower; prompts of text alone do not need it."""
    images = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=small_config("gemma3").to_dict(),
        vision_config=images,
        mm_tokens_per_image=4,
        image_token_index=96,
        boi_token_index=95,
        eoi_token_index=94,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model, ids = Gemma3ForConditionalGeneration(config).eval(), [token % 90 for token in prompt(LENGTH)]
    expected = model(torch.tensor([ids])).logits[0].detach()
    model.save_pretrained(tmp_path)
    for decoder in (share_decoder(model), load_decoder(tmp_path)[0]):
        assert decoder.config.layers[0].mixer.window == 7
        torch.testing.assert_close(full(decoder, ids), expected, rtol=0, atol=1e-4)

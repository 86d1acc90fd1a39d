"""A decoder over a loaded model owns no memory: its parameters are the model's, or views of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Phi3Config, Phi3ForCausalLM

from paceline.core.errors import CheckpointError
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def _storages(module: nn.Module) -> set[int]:
    return {weight.untyped_storage().data_ptr() for weight in module.parameters()}


def _weight(decoder: Decoder, name: str) -> Tensor:
    return decoder.state_dict()[name]


def test_every_weight_is_the_models(llama: LlamaForCausalLM) -> None:
    decoder = share_decoder(llama)
    assert _weight(decoder, "embed.weight").data_ptr() == llama.model.embed_tokens.weight.data_ptr()
    assert _weight(decoder, "layers.1.mixer.k.weight").data_ptr() == llama.model.layers[1].self_attn.k_proj.weight.data_ptr()
    assert _storages(decoder) == _storages(llama)
    assert all(weight.requires_grad for weight in llama.parameters())  # the model can still be trained
    assert not any(weight.requires_grad for weight in decoder.parameters())


def test_training_the_model_changes_the_decoder(llama: LlamaForCausalLM) -> None:
    decoder = share_decoder(llama)
    with torch.no_grad():
        llama.model.norm.weight[3] += 1.0
        assert _weight(decoder, "norm.weight")[3] == llama.model.norm.weight[3]
        llama.model.norm.weight[3] -= 1.0


def test_fused_weights_become_views() -> None:
    model = Phi3ForCausalLM(Phi3Config(**SIZES, num_hidden_layers=2))
    decoder = share_decoder(model)
    assert _storages(decoder) == _storages(model)
    fused = model.model.layers[1].self_attn.qkv_proj.weight
    key = _weight(decoder, "layers.1.mixer.k.weight")
    assert key.data_ptr() == fused[16:].data_ptr()
    assert torch.equal(key, fused[16:24])
    up = model.model.layers[0].mlp.gate_up_proj.weight
    assert torch.equal(_weight(decoder, "layers.0.feed_forward.up.weight"), up[24:])


def test_stacked_experts_and_tied_heads_are_shared() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_hidden_layers=1, num_local_experts=3, tie_word_embeddings=True))
    decoder = share_decoder(model)
    assert decoder.head is None
    assert _storages(decoder) == _storages(model)


def test_generation_settings_name_stop_ids(llama: LlamaForCausalLM) -> None:
    before = llama.generation_config.eos_token_id
    llama.generation_config.eos_token_id = [9, 2]
    try:
        assert share_decoder(llama).config.eos == (2, 9)
    finally:
        llama.generation_config.eos_token_id = before


def test_what_cannot_be_shared_is_named() -> None:
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel"):
        share_decoder(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)))
    model = Phi3ForCausalLM(Phi3Config(**SIZES, num_hidden_layers=1))
    model.lm_head.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"several kinds.*bfloat16"):
        share_decoder(model)
    with torch.device("meta"):
        offloaded = Phi3ForCausalLM(Phi3Config(**SIZES, num_hidden_layers=1))
    with pytest.raises(CheckpointError, match="meta"):
        share_decoder(offloaded)

"""Small random encoder-decoders of every supported family, made by `transformers`, the oracle of these tests."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from zoo_of_families import _DoubleTorch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 61
T5_SMALL = {
    "d_model": 32,
    "d_kv": 12,  # heads together are not as wide as the model
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,  # far below the lengths the tests use
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
BART_SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
}
PAD = {"pad_token_id": VOCABULARY - 1, "decoder_start_token_id": VOCABULARY - 1}
APART = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 53, "pad_token_id": 52, "decoder_start_token_id": 52}

# name -> (class name of the config, of the model, entries). Several rows where a family has switches that change the network.
PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration", T5_SMALL),
    "t5-gated": ("T5Config", "T5ForConditionalGeneration", T5_SMALL | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", T5_SMALL),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART_SMALL),
    "bart-scaled": (
        "BartConfig",
        "BartForConditionalGeneration",
        BART_SMALL | {"scale_embedding": True, "forced_bos_token_id": 0, "activation_function": "relu"},
    ),
    "marian": ("MarianConfig", "MarianMTModel", BART_SMALL | PAD | {"activation_function": "swish", "scale_embedding": True}),
    "marian-apart": ("MarianConfig", "MarianMTModel", BART_SMALL | APART | {"activation_function": "swish", "d_model": 20}),
}
NAMES = list(PAIRS)


def small_config(name: str, **changes: Any) -> PreTrainedConfig:
    """A config of one case, with changes."""
    kind, _, entries = PAIRS[name]
    return getattr(transformers, kind)(**{"vocab_size": VOCABULARY} | entries | changes)


def small_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of one case in the default dtype, with weights that make every part matter: norms are not neutral, biases not zero.

    Generation stops at no EOS and forces none, so that lengths are those asked for.
    """
    config = small_config(name, **changes)
    config._attn_implementation = "eager"
    model = getattr(transformers, PAIRS[name][1])(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    weights = [(key, weight) for key, weight in model.named_parameters() if not (name.startswith("marian") and "embed_positions" in key)]
    for key, weight in [*weights, *((key, buffer) for key, buffer in model.named_buffers() if key == "final_logits_bias")]:
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if weight.dim() == 1:
            weight.copy_(0.3 * noise + (0.0 if key.endswith("bias") else 1.0))
        elif any(part in key for part in ("shared", "embed", "relative", "logits_bias", "lm_head")):
            weight.copy_(noise)
        else:
            weight.copy_(noise * weight.shape[-1] ** -0.5 * (0.6 if name.endswith(("t5", "t5-gated")) else 1.2))
    for holder in (model.generation_config, model.config):
        holder.eos_token_id = holder.forced_eos_token_id = None
    return model


@contextmanager
def double_throughout() -> Iterator[None]:
    """Let `transformers` compute in float64 where it insists on float32, as `zoo_of_families.double_throughout` does."""
    modules = {sys.modules[getattr(transformers, model).__module__] for _, model, _ in PAIRS.values()}
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "torch", _DoubleTorch())
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(previous)


def words(length: int, seed: int = 0, vocabulary: int = 50) -> list[int]:
    """Random token ids that every vocabulary here has; special ones among them are ordinary."""
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

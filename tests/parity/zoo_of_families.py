"""Small random models of every supported family, made by `transformers`, the oracle of these tests."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import modeling_rope_utils

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
WINDOW = 7  # far below the lengths the tests use, so that sliding matters

# name -> (class prefix, config entries). Several rows where a family has switches that change the network.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biased-tied": ("Llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mistral-unwindowed": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-windowed": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "attention_bias": True},
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW}),
    "phi3-partial": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}, "tie_word_embeddings": True},
    ),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 12,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            },
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": False,
            "mlp_only_layers": [2],
        },
    ),
    "qwen3-moe-normalised": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
}
NAMES = list(CASES)


def small_config(name: str, **changes: Any) -> PreTrainedConfig:
    """A config of one case, with changes."""
    prefix, entries = CASES[name]
    kind = getattr(transformers, f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config")
    return kind(**SMALL | entries | changes)


def small_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of one case in the default dtype, eager attention, with weights that make every part of the network matter.

    Activations stay of order one, norm weights differ from their neutral value, and biases are not zero.
    """
    prefix = CASES[name][0]
    config = small_config(name, **changes)
    config._attn_implementation = config._experts_implementation = "eager"
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if weight.dim() > 1:
            scale = 1.0 if "embed" in key else 1.5 * weight.shape[-1] ** -0.5
            weight.copy_(noise * scale)
        else:
            neutral = 0.0 if key.endswith("bias") or prefix.startswith("Gemma") else 1.0
            weight.copy_(neutral + 0.3 * noise)
    model.generation_config.eos_token_id = None
    return model


class _DoubleTorch:
    """`torch`, except that float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def double_throughout() -> Iterator[None]:
    """Let `transformers` compute in float64 where it insists on float32 (norms, softmax, rotary angles), for tight comparisons.

    Only the modelling modules see the changed `torch`; a module imported for the first time meanwhile is not affected.
    """
    prefixes = {prefix for prefix, _ in CASES.values()}
    modules = {sys.modules[getattr(transformers, f"{prefix}ForCausalLM").__module__] for prefix in prefixes} | {modeling_rope_utils}
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "torch", _DoubleTorch())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(previous)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random token ids; id 0 and the special ids among them are ordinary."""
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

"""Masked diffusion networks of the zoo: trained as `transformers` models, written in the released layouts of LLaDA and SDAR.

`transformers` has neither architecture, but each is one it has, with another attention mask: LLaDA is a Llama whose positions all see each
other, SDAR a Qwen3 whose positions see their own block and those before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

Layout = Literal["llada", "sdar"]
LLADA_NAMES = {
    "embed_tokens": "wte",
    "layers": "blocks",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


@dataclass(frozen=True, slots=True)
class Denoising:
    """What makes a network a diffusion model.

    Args:
        layout: of the checkpoint, and with it the kind of network.
        mask: id of a masked position.
        block: positions per block, for `sdar`.
    """

    layout: Layout
    mask: int
    block: int = 4

    def visible(self, tokens: int) -> Bool[Tensor, "tokens tokens"]:
        """Which positions see which."""
        if self.layout == "llada":
            return torch.ones(tokens, tokens, dtype=torch.bool)
        number = torch.arange(tokens) // self.block
        return number[:, None] >= number[None, :]


def new_denoiser(kind: Denoising, shape: Mapping[str, Any], seed: int, start: nn.Module | None = None) -> nn.Module:
    """A network with seeded random weights, in fp32 and training mode.

    Args:
        kind: which one.
        shape: keyword arguments of `transformers.LlamaConfig` or `Qwen3Config`.
        start: an autoregressive network of the same kind and shape whose weights are taken over where both have them; its vocabulary may
            be smaller, so that the mask is a new row.
    """
    import transformers

    torch.manual_seed(seed)
    prefix = "Llama" if kind.layout == "llada" else "Qwen3"
    config = getattr(transformers, f"{prefix}Config")(**shape)
    network = getattr(transformers, f"{prefix}ForCausalLM")(config)
    if start is not None:
        own = network.state_dict()
        with torch.no_grad():
            for name, weight in start.state_dict().items():
                if name in own:
                    own[name][tuple(slice(size) for size in weight.shape)] = weight
    return cast(nn.Module, network.train())


def denoiser_logits(
    network: nn.Module, ids: Int[Tensor, "rows tokens"], visible: Bool[Tensor, "tokens tokens"]
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Logits of every position, each seeing what `visible` says."""
    weight = next(network.parameters())
    hidden = torch.zeros(visible.shape, dtype=weight.dtype, device=weight.device).masked_fill(~visible.to(weight.device), float("-inf"))
    return cast(Tensor, network(input_ids=ids, attention_mask=hidden.expand(len(ids), 1, -1, -1), use_cache=False).logits)


def save_denoiser(network: nn.Module, kind: Denoising, folder: Path) -> None:
    """Write weights, rounded to bf16, and configuration in the released layout."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = cast(Any, network).config
    tensors = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in network.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if kind.layout == "llada":
        tensors = {llada_name(name): weight for name, weight in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    entries = llada_config(config, kind) if kind.layout == "llada" else sdar_config(config, kind)
    (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n")


def llada_name(name: str) -> str:
    """A Llama tensor's name in LLaDA's layout."""
    if name == "lm_head.weight":
        return "model.transformer.ff_out.weight"
    if name == "model.norm.weight":
        return "model.transformer.ln_f.weight"
    for ours, theirs in LLADA_NAMES.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace("model.", "model.transformer.", 1)


def llada_config(config: Any, kind: Denoising) -> dict[str, Any]:
    """`config.json` of a Llama-shaped network in LLaDA's words."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "mlp_hidden_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "weight_tying": config.tie_word_embeddings,
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "mask_token_id": kind.mask,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": "bfloat16",
    }


def sdar_config(config: Any, kind: Denoising) -> dict[str, Any]:
    """`config.json` of a Qwen3-shaped network in SDAR's words."""
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    return {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        **{name: getattr(config, name) for name in kept},
        "rope_theta": config.rope_parameters["rope_theta"],
        "mask_token_id": kind.mask,
        "block_size": kind.block,
        "torch_dtype": "bfloat16",
    }

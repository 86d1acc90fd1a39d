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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paceline.denoising.objective import noisy_and_clean

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
LLADA_SIZES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_sequence_length",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "weight_tying",
}
SDAR_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias",
)  # fmt: skip
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


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
            be smaller, so that the mask is a new row. Weights of another shape are left as they are.
    """
    import transformers

    torch.manual_seed(seed)
    prefix = "Llama" if kind.layout == "llada" else "Qwen3"
    config = getattr(transformers, f"{prefix}Config")(**shape)
    config.mask_token_id, config.block_size = kind.mask, kind.block
    config._attn_implementation = "eager"  # on CPUs, the backward pass of SDPA takes five times as long as that of plain products
    network = getattr(transformers, f"{prefix}ForCausalLM")(config)
    if start is not None:
        own = network.state_dict()
        with torch.no_grad():
            for name, weight in start.state_dict().items():
                if name in own and fits(weight, own[name]):
                    own[name][tuple(slice(size) for size in weight.shape)] = weight
    return cast(nn.Module, network.train())


def kind_in(network: nn.Module) -> Denoising:
    """What `new_denoiser` was asked for."""
    config: Any = cast(Any, network).config
    return Denoising("llada" if config.model_type == "llama" else "sdar", config.mask_token_id, config.block_size)


def fits(weight: Tensor, into: Tensor) -> bool:
    """Whether a weight can be taken over: the same shape, or fewer rows (a smaller vocabulary)."""
    return weight.ndim == into.ndim and weight.shape[1:] == into.shape[1:] and weight.shape[0] <= into.shape[0]


def taken_over(kind: Denoising, shape: Mapping[str, Any], start: nn.Module) -> float:
    """Share of a network's parameters that `start` provides."""
    own, given = new_denoiser(kind, shape, 0).state_dict(), start.state_dict()
    names = [name for name in own if name != "lm_head.weight" or not shape.get("tie_word_embeddings")]
    count = sum(given[name].numel() for name in names if name in given and fits(given[name], own[name]))
    return float(count / sum(own[name].numel() for name in names))


def masked_logits(
    network: nn.Module, kind: Denoising, ids: Int[Tensor, "rows tokens"], masked: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, "masked vocabulary"]:
    """Logits of masked positions as in training: a block-diffusion network is fed a noisy copy and the clean one, others the noisy alone.

    Args:
        ids: clean.
        masked: positions to mask.
    """
    tokens = ids.shape[1]
    fed, visible, positions = torch.where(masked, kind.mask, ids), kind.visible(tokens), None
    if kind.layout == "sdar":
        positions, visible = noisy_and_clean(tokens, kind.block)
        fed = torch.cat([fed, ids], 1)
    hidden = _hidden(network, fed, visible, positions)[:, :tokens]
    return cast(Tensor, cast(Any, network).lm_head(hidden[masked]))


def denoiser_logits(
    network: nn.Module, ids: Int[Tensor, "rows tokens"], visible: Bool[Tensor, "tokens tokens"]
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Logits of every position, each seeing what `visible` says."""
    return cast(Tensor, cast(Any, network).lm_head(_hidden(network, ids, visible)))


def _hidden(
    network: nn.Module,
    ids: Int[Tensor, "rows tokens"],
    visible: Bool[Tensor, "tokens tokens"],
    positions: Int[Tensor, " tokens"] | None = None,
) -> Float[Tensor, "rows tokens width"]:
    """Final hidden states."""
    weight = next(network.parameters())
    bias = torch.zeros(visible.shape, dtype=weight.dtype, device=weight.device).masked_fill(~visible.to(weight.device), float("-inf"))
    where = None if positions is None else positions.to(weight.device).expand(len(ids), -1)
    body = cast(Any, network).model
    found = body(input_ids=ids, attention_mask=bias.expand(len(ids), 1, -1, -1), position_ids=where, use_cache=False)
    return cast(Tensor, found.last_hidden_state)


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


def load_denoiser(folder: Path) -> nn.Module:
    """A network that `save_denoiser` wrote, in fp32, in evaluation mode, on the CPU."""
    entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layout: Layout = "llada" if entries["model_type"] == "llada" else "sdar"
    sizes = LLADA_SIZES if layout == "llada" else dict.fromkeys(SDAR_KEYS)
    shape = {ours: entries[theirs or ours] for ours, theirs in sizes.items()} | {name: entries[name] for name in (*ENDS, "rope_theta")}
    network = new_denoiser(Denoising(layout, entries["mask_token_id"], entries.get("block_size", 4)), shape, 0)
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            stored = llada_name(name) if layout == "llada" else name
            if stored in tensors:  # a tied head is not
                weight.copy_(tensors[stored])
    return network.eval()


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
        **{theirs: getattr(config, ours) for ours, theirs in LLADA_SIZES.items()},
        **{name: getattr(config, name) for name in ENDS},
        "embedding_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "mask_token_id": kind.mask,
        "torch_dtype": "bfloat16",
    }


def sdar_config(config: Any, kind: Denoising) -> dict[str, Any]:
    """`config.json` of a Qwen3-shaped network in SDAR's words."""
    return {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        **{name: getattr(config, name) for name in (*SDAR_KEYS, *ENDS)},
        "rope_theta": config.rope_parameters["rope_theta"],
        "mask_token_id": kind.mask,
        "block_size": kind.block,
        "torch_dtype": "bfloat16",
    }

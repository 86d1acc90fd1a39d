"""Tiny random masked diffusion models in their released layouts, and an independent implementation of what they compute.

The implementation shares nothing with paceline: it reads the checkpoint's own names, keeps batch and sequence apart, and uses explicit
masks. `transformers` has none of the three architectures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from paceline.engine.llm import LLM

Make = Callable[..., LLM]  # the fixture `make`: layout, method, options of `load`

VOCABULARY = 48
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 32, 3, 4, 2, 8, 40
MASK, EOS = 45, 2
BLOCK = 4
LAYOUTS = ("llada", "dream", "sdar")

CONFIGS: dict[str, dict[str, Any]] = {
    "llada": {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS,
        "n_kv_heads": HEADS, "mlp_hidden_size": INNER, "vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_sequence_length": 256, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS,
        "block_type": "llama", "block_group_size": 1, "rope": True, "rope_full_precision": True, "layer_norm_type": "rms",
        "activation_type": "silu", "weight_tying": False, "include_bias": False, "include_qkv_bias": False, "alibi": False,
        "scale_logits": False, "input_emb_norm": False, "torch_dtype": "float32",
    },
    "dream": {
        "architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 256, "mask_token_id": MASK, "eos_token_id": EOS,
        "bos_token_id": 1, "pad_token_id": EOS, "hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False,
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"}, "torch_dtype": "float32",
    },
    "sdar": {
        "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 12, "intermediate_size": INNER,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 256, "eos_token_id": EOS,
        "bos_token_id": EOS, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mask_token_id": MASK,
        "block_size": BLOCK, "torch_dtype": "float32",
    },
}  # fmt: skip


def names(layout: str) -> dict[str, str]:
    """Checkpoint names of the parts that `Reference` asks for; `{i}` is the layer."""
    if layout == "llada":
        block, root = "model.transformer.blocks.{i}.", "model.transformer."
        inner = {"norm1": "attn_norm", "norm2": "ff_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out"}
        inner |= {"gate": "ff_proj", "up": "up_proj", "down": "ff_out"}
        return {key: f"{block}{name}" for key, name in inner.items()} | {
            "embed": f"{root}wte", "norm": f"{root}ln_f", "head": f"{root}ff_out",
        }  # fmt: skip
    block = "model.layers.{i}."
    inner = {f"{part}": f"self_attn.{part}_proj" for part in "qkvo"} | {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    inner |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return {key: f"{block}{name}" for key, name in inner.items()} | {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def tensors(layout: str, seed: int = 0) -> dict[str, Tensor]:
    """Random float32 weights that make every part of the network matter."""
    config, generator = CONFIGS[layout], torch.Generator().manual_seed(seed)
    head_dim = config.get("head_dim", WIDTH // HEADS)
    kv = config.get("n_kv_heads") or config.get("num_key_value_heads")
    shapes = {
        "norm1": (WIDTH,), "norm2": (WIDTH,), "q": (HEADS * head_dim, WIDTH), "k": (kv * head_dim, WIDTH), "v": (kv * head_dim, WIDTH),
        "o": (WIDTH, HEADS * head_dim), "gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER),
    }  # fmt: skip
    if layout == "sdar":
        shapes |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
    found: dict[str, Tensor] = {}
    table = names(layout)

    def add(part: str, leaf: str, shape: tuple[int, ...], layer: int = 0) -> None:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = 1.0 if part == "embed" else 1.5 * shape[-1] ** -0.5
        weight = noise * scale if len(shape) > 1 else (0.0 if leaf == "bias" else 1.0) + 0.3 * noise
        found[f"{table[part].format(i=layer)}.{leaf}"] = weight.float()

    for layer in range(LAYERS):
        for part, shape in shapes.items():
            add(part, "weight", shape, layer)
        if layout == "dream":
            for part in "qkv":
                add(part, "bias", shapes[part][:1], layer)
    add("embed", "weight", (VOCABULARY, WIDTH))
    add("norm", "weight", (WIDTH,))
    add("head", "weight", (VOCABULARY, WIDTH))
    return found


def write(folder: Path, layout: str, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint folder; a change to `None` removes the key."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIGS[layout] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(layout, seed), folder / "model.safetensors")
    return folder


class Reference:
    """Logits of a layout, written from the page's description, in float64."""

    def __init__(self, layout: str, seed: int = 0) -> None:
        self.layout, self.config = layout, CONFIGS[layout]
        self.weights = {name: tensor.double() for name, tensor in tensors(layout, seed).items()}
        self.table = names(layout)
        self.head_dim = self.config.get("head_dim", WIDTH // HEADS)
        self.eps = self.config["rms_norm_eps"]

    def __call__(self, ids: list[int] | Tensor) -> Tensor:
        """Logits of every position of one sequence, not shifted."""
        ids = torch.as_tensor(ids)
        count = len(ids)
        visible = torch.ones(count, count, dtype=torch.bool)
        if self.layout == "sdar":
            block = torch.arange(count) // BLOCK
            visible = block[:, None] >= block[None, :]
        x = self._weight("embed")[ids]
        for layer in range(LAYERS):
            x = x + self._attention(self._norm(x, "norm1", layer), visible, layer)
            y = self._norm(x, "norm2", layer)
            gate = self._linear(y, "gate", layer)
            x = x + self._linear(gate * torch.sigmoid(gate) * self._linear(y, "up", layer), "down", layer)
        return self._norm(x, "norm") @ self._weight("head").T

    def partial(self, ids: list[int] | Tensor, fed: list[int], cache: list[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, list[Any]]:
        """Logits of the fed rows of a canvas, the keys and values of all others being those of the cache, which is renewed where fed."""
        ids, where = torch.as_tensor(ids), torch.tensor(fed)
        x, renewed = self._weight("embed")[ids[where]], []
        for layer in range(LAYERS):
            y = self._norm(x, "norm1", layer)
            q, k, v = (self._linear(y, part, layer).view(len(fed), -1, self.head_dim) for part in "qkv")
            q, k = self._rotate(q, where), self._rotate(k, where)
            old = cache[layer] if cache is not None else (torch.full((len(ids), *k.shape[1:]), torch.nan, dtype=k.dtype),) * 2
            keys, values = old[0].clone(), old[1].clone()
            keys[where], values[where] = k, v
            renewed.append((keys, values))
            keys, values = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (keys, values))
            weights = (torch.einsum("ihd,jhd->hij", q, keys) / self.head_dim**0.5).softmax(-1)
            x = x + self._linear(torch.einsum("hij,jhd->ihd", weights, values).reshape(len(fed), -1), "o", layer)
            y = self._norm(x, "norm2", layer)
            gate = self._linear(y, "gate", layer)
            x = x + self._linear(gate * torch.sigmoid(gate) * self._linear(y, "up", layer), "down", layer)
        return self._norm(x, "norm") @ self._weight("head").T, renewed

    def shifted(self, ids: list[int] | Tensor) -> Tensor:
        """Logits as decoding uses them: row i predicts position i."""
        logits = self(ids)
        return torch.cat([logits[:1], logits[:-1]]) if self.layout == "dream" else logits

    def _attention(self, x: Tensor, visible: Tensor, layer: int) -> Tensor:
        count = len(x)
        q, k, v = (self._linear(x, part, layer).view(count, -1, self.head_dim) for part in "qkv")
        if self.layout == "sdar":
            q, k = self._norm(q, "q_norm", layer), self._norm(k, "k_norm", layer)
        q, k = self._rotate(q), self._rotate(k)
        k, v = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / self.head_dim**0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return self._linear(torch.einsum("hij,jhd->ihd", weights, v).reshape(count, -1), "o", layer)

    def _rotate(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        half = self.head_dim // 2
        where = torch.arange(len(x)) if where is None else where
        frequency = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = where.double()[:, None, None] * frequency
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)

    def _norm(self, x: Tensor, part: str, layer: int = 0) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self._weight(part, layer)

    def _linear(self, x: Tensor, part: str, layer: int) -> Tensor:
        bias = self.weights.get(f"{self.table[part].format(i=layer)}.bias")
        out = x @ self._weight(part, layer).T
        return out if bias is None else out + bias

    def _weight(self, part: str, layer: int = 0) -> Tensor:
        return self.weights[f"{self.table[part].format(i=layer)}.weight"]

"""The models that forward costs are measured on, and the bytes and operations that a forward of each cannot do without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.bench.gguf import LlamaShape
from paceline.core.errors import UsageError

SEED = 0
# Shapes of models with random weights: for timing, only the shape matters.
RANDOM_SHAPES: dict[str, dict[str, Any]] = {
    "llama-110m": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 32000,
    },
    "llama-6m": {
        "num_hidden_layers": 6,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 704,
        "vocab_size": 4096,
    },
}


@dataclass(frozen=True, slots=True)
class ForwardWork:
    """What a forward of a Llama must move and compute.

    Args:
        linear: elements of all matrices that multiply: layers and head. The embedding table is only gathered from.
        other: elements of norms.
        kv_per_token: elements of keys and values of one token, over all layers.
        score: operations per pair of a row and a key it sees, over all layers and heads.
    """

    linear: int
    other: int
    kv_per_token: int
    score: int

    @classmethod
    def of(cls, shape: LlamaShape) -> ForwardWork:
        """Of a checkpoint's shape."""
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        layer = shape.width * (2 * queries + 2 * keys + 3 * shape.feed_forward)
        return cls(
            linear=shape.layers * layer + shape.width * shape.vocabulary,
            other=(2 * shape.layers + 1) * shape.width,
            kv_per_token=2 * shape.layers * keys,
            score=4 * shape.layers * queries,  # a product and a weighted sum, two operations each
        )

    def weight_bytes(self, itemsize: int) -> int:
        """Bytes of weights that every forward reads."""
        return (self.linear + self.other) * itemsize

    def kv_bytes(self, context: int, itemsize: int) -> int:
        """Bytes of keys and values that a forward behind `context` tokens reads."""
        return context * self.kv_per_token * itemsize

    def flops(self, rows: int, context: int) -> float:
        """Operations of a causal forward of `rows` rows behind `context` tokens, logits of all rows included."""
        seen = rows * context + rows * (rows + 1) // 2
        return 2.0 * self.linear * rows + float(self.score) * seen


def prepare(name: str, scratch: Path, positions: int) -> Path:
    """A checkpoint folder of the model in `scratch`, that allows at least `positions` positions.

    Args:
        name: a pocket model, a checkpoint folder, or a key of `RANDOM_SHAPES`.

    Raises:
        UsageError: if there is no such model.
    """
    if name in RANDOM_SHAPES:
        return _random(RANDOM_SHAPES[name], scratch / name, positions)
    from paceline.zoo.registry import pocket_models, resolve

    source = resolve(name) or Path(name)
    if not (source / "config.json").exists():
        known = ", ".join([*RANDOM_SHAPES, *pocket_models()])
        raise UsageError(f"there is no model {name!r} to measure; give a checkpoint folder or one of {known} (build pocket models first)")
    return _stretched(source, scratch / source.name, positions)


def _random(shape: dict[str, Any], folder: Path, positions: int) -> Path:
    """Save a random tied Llama in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        config = LlamaConfig(**shape, max_position_embeddings=positions, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
        weights: dict[str, Any] = LlamaForCausalLM(config).state_dict()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    # Saved by hand, since `save_pretrained` of a model shows a progress bar; the head is the embedding table.
    save_file(
        {name: weight.to(torch.bfloat16) for name, weight in weights.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )
    return folder


def _stretched(source: Path, folder: Path, positions: int) -> Path:
    """A copy that allows more positions: timings do not mind that the model was never trained for them."""
    keep: Callable[[str, list[str]], set[str]] = shutil.ignore_patterns("*.md", "*.bin")
    shutil.copytree(source, folder, ignore=keep)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["max_position_embeddings"] = max(positions, config["max_position_embeddings"])
    path.write_text(json.dumps(config))
    return folder

"""Export of a Llama checkpoint folder to GGUF, so that llama.cpp decodes the very same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench.gguf_tokenizer import Vocabulary, read_vocabulary
from paceline.bench.gguf_weights import Weights
from paceline.core.errors import CheckpointError, UsageError

ARCHITECTURE = "LlamaForCausalLM"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Name in the checkpoint to name in GGUF; `{i}` is the layer.
GLOBAL = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
LAYER = {
    "model.layers.{i}.input_layernorm.weight": "blk.{i}.attn_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blk.{i}.attn_q.weight",
    "model.layers.{i}.self_attn.k_proj.weight": "blk.{i}.attn_k.weight",
    "model.layers.{i}.self_attn.v_proj.weight": "blk.{i}.attn_v.weight",
    "model.layers.{i}.self_attn.o_proj.weight": "blk.{i}.attn_output.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blk.{i}.ffn_gate.weight",
    "model.layers.{i}.mlp.up_proj.weight": "blk.{i}.ffn_up.weight",
    "model.layers.{i}.mlp.down_proj.weight": "blk.{i}.ffn_down.weight",
}


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Args:
        path: the GGUF file.
        tensors: how many.
        dtype: of the matrices; vectors stay in float32.
        text_is_exact: whether llama.cpp cuts text as the checkpoint's tokenizer does; ids are always right.
    """

    path: Path
    tensors: int
    dtype: str
    text_is_exact: bool


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a Llama `config.json` that GGUF wants.

    Raises:
        CheckpointError: for an architecture or an option that the export does not know.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int
    norm_eps: float
    rope_theta: float
    tied: bool
    bos: int | None
    eos: int | None

    @classmethod
    def read(cls, folder: Path) -> LlamaShape:
        """From the folder's `config.json`."""
        path = folder / "config.json"
        if not path.exists():
            raise CheckpointError(f"{folder} has no config.json; give a checkpoint folder in the layout of transformers")
        config = json.loads(path.read_text())
        _require_plain_llama(path, config)
        heads, eos = config["num_attention_heads"], config.get("eos_token_id")
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config["intermediate_size"],
            context=config["max_position_embeddings"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0),
            tied=bool(config.get("tie_word_embeddings", False)),
            bos=config.get("bos_token_id"),
            eos=eos[0] if isinstance(eos, list) else eos,
        )


def export_gguf(folder: Path, target: Path, dtype: str = "bfloat16") -> Export:
    """Write the checkpoint in `folder` to the GGUF file `target`.

    Args:
        folder: `config.json`, `*.safetensors`, and `tokenizer.json` if there is one.
        target: file to write; appears only when complete.
        dtype: of the matrices: `float32`, `float16` or `bfloat16`. Vectors (norms) are always float32, as llama.cpp wants them.

    Raises:
        UsageError: if the dtype is unknown or the `gguf` package is missing.
        CheckpointError: if the checkpoint is no plain Llama, or a tensor is missing or left over.
    """
    gguf = _package()
    if dtype not in DTYPES:
        raise UsageError(f"GGUF dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    stored = gguf.GGMLQuantizationType[DTYPES[dtype]]
    shape, weights = LlamaShape.read(folder), Weights(folder)
    vocabulary = read_vocabulary(folder, shape.vocabulary)

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _write_shape(writer, shape)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if dtype == 'float32' else 'MOSTLY'}_{DTYPES[dtype]}"])
    _write_vocabulary(writer, vocabulary, shape)
    count = 0
    try:
        for name, numbers in llama_tensors(weights, shape):
            kind = stored if numbers.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
            count += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Export(target, count, dtype, vocabulary is not None and vocabulary.exact)


def llama_tensors(weights: Weights, shape: LlamaShape) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor under its GGUF name, rearranged as llama.cpp computes.

    Raises:
        CheckpointError: if a tensor is missing, or one is left that the architecture does not have.
    """
    layers = ((source.format(i=i), target.format(i=i)) for i in range(shape.layers) for source, target in LAYER.items())
    names = dict(item for item in GLOBAL.items() if not (shape.tied and item[0] == "lm_head.weight")) | dict(layers)
    # A tied head may be stored all the same; rotary frequencies follow from the config.
    ignored = {"lm_head.weight"} if shape.tied else set()
    if left := [name for name in weights if name not in names and name not in ignored and not name.endswith("rotary_emb.inv_freq")]:
        raise CheckpointError(f"the checkpoint has a tensor {left[0]} that a plain Llama does not have; it cannot be exported to GGUF")
    for source, target in names.items():
        numbers = weights.float32(source)
        if source.endswith(".q_proj.weight"):
            numbers = pair_rotary(numbers, shape.heads)
        elif source.endswith(".k_proj.weight"):
            numbers = pair_rotary(numbers, shape.kv_heads)
        yield target, numbers


def pair_rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of a query or key projection from halves to pairs.

    transformers rotates dimension `d` of a head with `d + head_dim / 2`, llama.cpp rotates `2 d` with `2 d + 1`. Scores stay the same
    because queries and keys are reordered alike.

    Args:
        weight: `(heads * head_dim, width)`.
    """
    rows, width = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width))


def _require_plain_llama(path: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(f"{path}: architectures is {architectures}; only {ARCHITECTURE} is exported to GGUF")
    kind = _rope(config).get("rope_type") or _rope(config).get("type") or "default"
    for key, value, plain in (
        ("rope_type", kind, "default"),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("mlp_bias", config.get("mlp_bias", False), False),
    ):
        if value != plain:
            raise CheckpointError(f"{path}: {key} is {value!r}; the export to GGUF knows only {plain!r}")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings; `rope_parameters` is the newer name of `rope_scaling`."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _write_shape(writer: Any, shape: LlamaShape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary | None, shape: LlamaShape) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitter)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(False)  # prompts are given as ids, complete
    if shape.bos is not None:
        writer.add_bos_token_id(shape.bos)
    if shape.eos is not None:
        writer.add_eos_token_id(shape.eos)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UsageError("exporting to GGUF needs the gguf package; install paceline[peers]") from error
    return gguf

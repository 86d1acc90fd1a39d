"""Configs of masked diffusion checkpoints (LLaDA, Dream, SDAR), in the words of the `transformers` config they resemble most.

`transformers` has none of these architectures; their own config classes are remote code, which is never run here. What the files say is
translated, and any setting that would change the network in a way no layer here implements is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.errors import CheckpointError
from paceline.models.config import DiffusionSpec
from paceline.models.families import stop_ids
from paceline.models.tensor_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Raw = Mapping[str, Any]

END_OF_TURN = ("<|eot_id|>",)  # LLaDA's chat models end an answer with it; no config names it
MASK_TOKENS = ("<|MASK|>", "<MASK>", "<|mask|>")
SDAR_BLOCK = 4
TOKENIZERS = {"DreamTokenizer": "Qwen2Tokenizer"}  # remote code -> the class of `transformers` that it is a copy of
# Keys of a LLaDA config and the values whose network is implemented here; an absent key has the first of them.
LLADA_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "activation_type": ("silu",),
    "rope": (True,),
    "rope_full_precision": (True,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "clip_qkv": (None,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
}
LLADA_NEEDED = ("d_model", "n_layers", "n_heads", "vocab_size", "mask_token_id")


def translated(raw: Raw, folder: Path | None = None) -> PreTrainedConfig | None:
    """The config of a diffusion checkpoint with a `diffusion` attribute (a `DiffusionSpec`); `None` for any other architecture.

    Args:
        raw: contents of `config.json`.
        folder: where the tokenizer's files are, which name ids that some configs leave out.

    Raises:
        CheckpointError: for a missing entry or an unsupported setting, naming the key.
    """
    named = (raw.get("architectures") or [None])[0]
    for (architecture, model_type), translate in TRANSLATIONS.items():
        if named == architecture or (named is None and raw.get("model_type") == model_type):
            config = translate(raw, folder)
            config.architectures = [architecture]
            return config
    return None


def _llada(raw: Raw, folder: Path | None) -> PreTrainedConfig:
    from transformers import LlamaConfig

    _need(raw, LLADA_NEEDED)
    for key, accepted in LLADA_ACCEPTED.items():
        if raw.get(key, accepted[0]) not in accepted:
            raise CheckpointError(f"config.json: LLaDA with {key}={raw[key]!r} is not supported; supported is {accepted[0]!r}")
    heads = raw["n_heads"]
    kv_heads = raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else heads)
    end = token_id(folder, END_OF_TURN)
    config = LlamaConfig(
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        hidden_size=raw["d_model"],
        intermediate_size=raw.get("mlp_hidden_size") or raw["d_model"] * raw.get("mlp_ratio", 4),
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=raw.get("max_sequence_length", 1024),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(raw.get("rope_theta", 10_000.0))},
        tie_word_embeddings=bool(raw.get("weight_tying", True)),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=list(stop_ids(raw.get("eos_token_id"), end)) or None,
        pad_token_id=raw.get("pad_token_id"),
    )
    config.diffusion = DiffusionSpec(mask=raw["mask_token_id"])
    return config


def _dream(raw: Raw, folder: Path | None) -> PreTrainedConfig:
    from transformers import Qwen2Config

    _need(raw, ("hidden_size", "mask_token_id"))
    if raw.get("use_sliding_window"):
        raise CheckpointError("config.json: Dream with use_sliding_window=True is not supported; bidirectional attention has no window")
    config = Qwen2Config(**_entries(raw))
    config.diffusion = DiffusionSpec(mask=raw["mask_token_id"], shifted=True)
    return config


def _sdar(raw: Raw, folder: Path | None) -> PreTrainedConfig:
    from transformers import Qwen3Config

    _need(raw, ("hidden_size",))
    if raw.get("use_sliding_window"):
        raise CheckpointError("config.json: SDAR with use_sliding_window=True is not supported; block-causal attention has no window")
    mask = raw.get("mask_token_id")
    mask = token_id(folder, MASK_TOKENS) if mask is None else mask
    if mask is None:
        raise CheckpointError(
            f"config.json: SDAR needs 'mask_token_id', and no tokenizer file beside it holds {' or '.join(MASK_TOKENS)}; add the entry"
        )
    config = Qwen3Config(**_entries(raw))
    config.diffusion = DiffusionSpec(mask=mask, block=raw.get("block_size") or raw.get("block_length") or SDAR_BLOCK)
    return config


TRANSLATIONS: dict[tuple[str, str], Callable[[Raw, Path | None], PreTrainedConfig]] = {
    ("LLaDAModelLM", "llada"): _llada,
    ("DreamModel", "Dream"): _dream,
    ("SDARForCausalLM", "sdar"): _sdar,
}


def token_id(folder: Path | None, spellings: Iterable[str]) -> int | None:
    """Id of a special token by its spelling, from `tokenizer.json`, `added_tokens.json` or `tokenizer_config.json`."""
    if folder is None:
        return None
    known: dict[str, int] = {}
    if (folder / "tokenizer.json").exists():
        known |= {entry["content"]: entry["id"] for entry in read_json(folder / "tokenizer.json").get("added_tokens") or ()}
    if (folder / "added_tokens.json").exists():
        known |= read_json(folder / "added_tokens.json")
    if (folder / "tokenizer_config.json").exists():
        entries = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        known |= {entry["content"]: int(index) for index, entry in entries.items()}
    return next((known[spelling] for spelling in spellings if spelling in known), None)


def _entries(raw: Raw) -> dict[str, Any]:
    """What a `transformers` config of the same words takes; entries that choose its class or run remote code are left out."""
    left_out = ("model_type", "auto_map", "architectures", "transformers_version", "layer_types", "block_size", "fuse_cross_entropy")
    entries = {key: value for key, value in raw.items() if key not in left_out}
    if "rope_parameters" not in entries:
        scaling = dict(entries.pop("rope_scaling", None) or {})
        scaling.setdefault("rope_type", scaling.pop("type", "default"))
        entries["rope_parameters"] = scaling | {"rope_theta": float(entries.pop("rope_theta", 10_000.0))}
    return entries


def _need(raw: Raw, keys: Iterable[str]) -> None:
    for key in keys:
        if raw.get(key) is None:
            raise CheckpointError(f"config.json lacks {key!r}, which a diffusion checkpoint needs; fetch the file again")

"""Load a decoder from a released checkpoint, tensor by tensor, into memory allocated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paceline.core.errors import CheckpointError, UsageError
from paceline.models.config import DecoderConfig
from paceline.models.decoder import Decoder
from paceline.models.diffusion_configs import translated
from paceline.models.encdec_families import PairFamily, start_ids
from paceline.models.families import decoder_config, find_family, stop_ids
from paceline.models.hub import locate as locate
from paceline.models.names import Layout, Recipe, choose, recipes
from paceline.models.tensor_files import TensorFiles, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_decoder(
    model: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    context: int | None = None,
) -> tuple[Decoder, PreTrainedConfig]:
    """Read a model folder or a Hub id.

    Every tensor is allocated once, in its final type and place, and filled from the mapped file: beside the weights themselves, at most
    one tensor of the checkpoint is held at a time.

    Args:
        model: folder or Hub id.
        dtype: of the weights; `None` keeps the checkpoint's.
        device: where they go.
        context: longest sequence to serve, where it is not the config's (see `decoder_config`).

    Returns:
        The decoder, and the checkpoint's `transformers` config.

    Raises:
        CheckpointError: for anything missing, truncated, mismatched or unsupported, naming file and key.
        UsageError: for a type that is not a floating type of weights.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} is not one of {', '.join(str(known).removeprefix('torch.') for known in DTYPES)}")
    folder = locate(model)
    hf_config = read_config(folder)
    config = decoder_config(hf_config, context=context)
    entries = read_json(folder / "config.json")  # older files keep there what transformers now reads from the other one alone
    if (folder / "generation_config.json").exists():
        entries |= read_json(folder / "generation_config.json")
    config = as_generated(config, hf_config, entries)
    decoder = empty_decoder(config)
    shapes, layout = tensor_shapes(decoder), layout_of(config)
    with TensorFiles(folder) as files:
        plan = {name: choose(ways, files.file_of) for name, ways in recipes(layout, shapes).items()}
        check_plan(plan, {key: files.shape(key) for key in files.file_of}, layout, str(folder), files.where)
        dtype = dtype or _stored_dtype(plan, files)
        tensors = {name: _assemble(recipe, shapes[name], files, dtype, torch.device(device)) for name, recipe in plan.items()}
    return fill(decoder, tensors), hf_config


def read_config(folder: Path) -> PreTrainedConfig:
    """The `transformers` config of a folder, of any version.

    Raises:
        CheckpointError: if `config.json` is missing, malformed, or of an unsupported architecture.
    """
    raw = read_json(folder / "config.json")
    named = raw.get("architectures") or [None]
    family = find_family(named[0], raw.get("model_type"))
    from transformers import AutoConfig  # after the cheap checks: it takes a second to import

    try:
        diffusion = translated(raw, folder)
        if diffusion is not None:
            return diffusion
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # each config class validates in its own way
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'config.json'} is not a valid {family.architecture} config: {reason}") from None
    return config


def as_generated(config: DecoderConfig, hf_config: PreTrainedConfig, generation: Mapping[str, Any]) -> DecoderConfig:
    """With the special ids that generation needs: ends of turns, what targets begin with, single tokens that are forbidden.

    Args:
        generation: entries of the generation config.

    Raises:
        CheckpointError: for an encoder-decoder without a start token.
    """
    eos = stop_ids(config.eos, generation.get("eos_token_id"))
    banned = (words[0] for words in generation.get("bad_words_ids") or () if len(words) == 1 and words[0] not in eos)
    config = replace(config, eos=eos, never=tuple(banned))
    return config if config.encoder is None else replace(config, start=start_ids(hf_config, generation))


def layout_of(config: DecoderConfig) -> Layout:
    """Names of a described model's tensors."""
    family = find_family(config.family)
    return family.layout_of(config) if isinstance(family, PairFamily) else family.layout


def empty_decoder(config: DecoderConfig) -> Decoder:
    """A decoder without memory behind its weights."""
    with torch.device("meta"):
        return Decoder(config)


def tensor_shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    return {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}


def fill(decoder: Decoder, tensors: Mapping[str, Tensor]) -> Decoder:
    """Make `tensors` the weights of an empty decoder: the same storage, no copies."""
    decoder.load_state_dict(dict(tensors), assign=True)
    return decoder.requires_grad_(False).eval()


def check_plan(
    plan: Mapping[str, Recipe], found: Mapping[str, tuple[int, ...]], layout: Layout, source: str, where: Callable[[str], str]
) -> None:
    """Compare what the recipes need with the shapes that are there, before anything is allocated.

    Args:
        plan: chosen recipe of every weight.
        found: shapes of the tensors that are there.
        layout: of the family.
        source: what holds the tensors, for messages.
        where: names one of its tensors, for messages.

    Raises:
        CheckpointError: for missing, mismatched or unexpected tensors, naming them.
    """
    needed = {piece.key: piece.shape for recipe in plan.values() for piece in recipe}
    if missing := [key for key in needed if key not in found]:
        raise CheckpointError(f"{source} lacks {_listed(missing)}, which config.json asks for; fetch the weights again")
    for key, shape in needed.items():
        if found[key] != shape:
            raise CheckpointError(
                f"{where(key)} has shape {list(found[key])} but config.json says {list(shape)}; the two are not of one model"
            )
    tied = "head.weight" not in plan
    if spare := [key for key in found if key not in needed and not layout.has_no_use_for(key, tied)]:
        raise CheckpointError(f"{source} holds {_listed(spare)}, which config.json has no place for; the two are not of one model")


def _assemble(recipe: Recipe, shape: tuple[int, ...], files: TensorFiles, dtype: torch.dtype, device: torch.device) -> Tensor:
    make = torch.empty if recipe else torch.zeros
    target = make(shape, dtype=dtype, device=device)
    for piece in recipe:
        files.dtype(piece.key)  # refuses quantised tensors
        target[piece.into].copy_(files.read(piece.key, piece.rows))
    return target


def _stored_dtype(plan: Mapping[str, Recipe], files: TensorFiles) -> torch.dtype:
    """Type of the embedding table; checkpoints of mixed types keep only small tensors wider."""
    return files.dtype(plan["embed.weight"][0].key)


def _listed(keys: Iterable[str], most: int = 3) -> str:
    names = sorted(keys)
    tail = f" and {len(names) - most} more" if len(names) > most else ""
    return f"tensor{'s' if len(names) > 1 else ''} " + ", ".join(repr(name) for name in names[:most]) + tail

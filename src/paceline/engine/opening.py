"""Whatever the user names as a model becomes a decoder with its tokenizer: a pocket model, a folder, a Hub id, a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from paceline.core.errors import CheckpointError, UsageError
from paceline.engine.llm import LLM
from paceline.engine.prompts import Tokenizer
from paceline.kernels.fused import fused
from paceline.models.decoder import Decoder
from paceline.models.diffusion_configs import TOKENIZERS
from paceline.models.linear import can_pack
from paceline.models.tensor_files import read_json

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL_WEIGHTS = 64 << 20  # below this many bytes a CPU forward is bound by dispatch, and float32 kernels have the least of it


def open_model(
    model: Any, device: torch.device, dtype: str | torch.dtype | None, pack: bool, exact: bool, context: int | None
) -> tuple[Decoder, Tokenizer | None, str]:
    """Decoder, tokenizer and display name of whatever the user named.

    Raises:
        UsageError: for something that is no model, or cannot be `exact`.
        CheckpointError: for a model that cannot be read or shared.
    """
    from paceline.models import hub
    from paceline.models.checkpoint import load_decoder
    from paceline.models.from_transformers import share_decoder
    from paceline.zoo.registry import require_built, resolve

    if isinstance(model, LLM):
        return model.runner.decoder, model.tokenizer, model.name
    if isinstance(model, Decoder):
        return model, None, model.config.family
    if not isinstance(model, (str, Path)):
        if not hasattr(model, "state_dict") or not hasattr(model, "config"):
            raise UsageError(f"a {type(model).__name__} is no model; give a name, a folder, a Hub id or a loaded transformers model")
        if exact:
            raise UsageError(
                "exact=True needs weights packed for this CPU; load the checkpoint by folder or name instead of sharing a model"
            )
        return share_decoder(model, context), None, type(model).__name__
    require_built(str(model))
    folder = hub.locate(resolve(str(model)) or model)
    wanted = named_dtype(dtype) if dtype is not None else _default_dtype(folder, device)
    decoder, _ = load_decoder(folder, dtype=wanted, device=device, context=context)
    decoder.folder = folder
    if pack:
        decoder.pack()
    if exact:
        _check_exact(decoder, pack)
    return decoder, _tokenizer(folder), str(model)


def _check_exact(decoder: Decoder, pack: bool) -> None:
    """Refuse bit-exact mode where a row's bits would depend on its neighbours.

    Raises:
        UsageError: naming what stands in the way.
    """
    if decoder.stack is not None:
        return
    if not pack or not can_pack(decoder.dtype, decoder.device):
        raise UsageError(f"exact=True needs packed row-independent kernels, and there are none for {decoder.dtype} on {decoder.device}")
    if decoder.encoder is not None:
        raise UsageError("exact=True does not cover encoder-decoders: the rows of their encoder and cross-attention have no fixed shapes")
    if any(layer.feed_forward.experts for layer in decoder.config.layers):
        raise UsageError("exact=True does not cover mixtures of experts: the rows an expert sees together depend on the batch")
    if any(layer.mixer.softcap is not None for layer in decoder.config.layers):
        raise UsageError("exact=True does not cover soft-capped attention, which has no kernel with a fixed order of summation")


def named_device(device: str | torch.device | None) -> torch.device:
    """Where to run; a GPU if there is one and nothing was named."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device={device!r} is not a device; use cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"device={str(device)!r} is not supported; use cpu, cuda or cuda:N")
    if place.type == "cuda" and not 0 <= (place.index or 0) < torch.cuda.device_count():  # torch wraps large numbers around
        raise UsageError(f"device={str(device)!r}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return place


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    aliases = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}
    found = DTYPES.get(aliases.get(dtype, dtype))
    if found is None:
        raise UsageError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)} (or fp32, fp64, bf16, fp16)")
    return found


def _default_dtype(folder: Path, device: torch.device) -> torch.dtype | None:
    """The checkpoint's own type (`None`), but float32 for small models on a CPU without kernels for products in bf16."""
    kernels = fused(torch.bfloat16, device)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    slow = device.type == "cpu" and (kernels is None or not kernels.native)
    return torch.float32 if slow and size < SMALL_WEIGHTS else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of `transformers` about model types that it does not know: only a tokenizer is wanted of it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _tokenizer(folder: Path) -> Tokenizer | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    import transformers

    settings = folder / "tokenizer_config.json"
    named = read_json(settings).get("tokenizer_class") if settings.exists() else None
    kind = getattr(transformers, TOKENIZERS.get(str(named), "AutoTokenizer"))
    try:
        with _quiet():
            return Tokenizer(kind.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # each tokenizer class, and the library below, fails in its own way
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read ({reason}); code that comes with a checkpoint is never run"
        ) from None

"""`paceline.load`: from a name, a folder or a `transformers` model to an `LLM` with a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paceline.attention.plan import Exactness
from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.drafting.base import DraftContext, Drafter
from paceline.drafting.compose import Compose
from paceline.engine.llm import LLM
from paceline.engine.loop import Engine, EngineConfig
from paceline.engine.prompts import Tokenizer
from paceline.engine.runner import Runner, default_slots, make_runner
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.models.linear import can_pack
from paceline.scheduling.continuous import SchedulerConfig

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL_WEIGHTS = 64 << 20  # below this many bytes a CPU forward is bound by dispatch, and float32 kernels have the least of it


def load(
    model: Any,
    method: str = "auto",
    *,
    draft: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    coupled: bool = False,
    kv_tokens: int | None = None,
    max_sequences: int = 64,
    max_rows: int = 512,
    prefix_cache: bool = True,
    context: int | None = None,
    pack: bool = True,
) -> LLM:
    """Load a model and choose how it decodes.

    Args:
        model: a pocket model's name, a local folder, a Hub id, a loaded `transformers` causal LM (weights shared, not copied), or another
            `LLM` or a `Decoder`, whose weights are then shared as they are, type and packing included.
        method: `NAME[:key=value,...]`, several joined by `+`; `paceline methods` lists them.
        draft: the draft model, where the method takes one; anything `model` accepts.
        device: where to run; a GPU if there is one.
        dtype: of weights and KV; the checkpoint's own, or float32 for small models on a CPU.
        exact: bit-exact mode: logits of plain and speculative chain decoding agree bit for bit.
        coupled: sampled speculative output is token-identical to plain sampling with the same seed.
        kv_tokens: KV memory in tokens, over all sequences.
        max_sequences: most sequences decoded at once.
        max_rows: most rows per forward; longer prompts are read in chunks.
        context: longest sequence served, up to the checkpoint's own limit (the default). It fixes the regime of length-dependent rope
            scaling: a long-context checkpoint that only sees short prompts decodes them with its short factors when told so here.
        prefix_cache: keep finished sequences as reusable prefixes.
        pack: reorder weights for this CPU (off shares or keeps the plain layout).

    Raises:
        UsageError: for options that do not fit together.
        CheckpointError: for models that cannot be read.
    """
    choices = registry.parse(method)
    ledger = Ledger()
    place = _device(device)
    decoder, tokenizer, name = _open(model, place, dtype, pack, exact, context)
    ledger.set("weights", decoder.weight_bytes())
    slots = kv_tokens if kv_tokens is not None else default_slots(decoder, max_sequences)
    if slots < 2:
        raise UsageError(f"kv_tokens={slots} must be at least 2")
    shapes = Exactness() if exact else None
    runner = make_runner(decoder, slots=slots, ledger=ledger, exact=shapes, prefix_cache=prefix_cache)
    drafting = _draft_runner(draft, decoder, slots, ledger, pack, context)
    offered = DraftContext(decoder.config.vocabulary, frozenset(decoder.config.eos), runner.probe, drafting)
    drafters: list[Drafter] = [choice.method.load().build(choice.config(), offered) for choice in choices]
    drafter = drafters[0] if len(drafters) == 1 else Compose(drafters)
    config = EngineConfig(SchedulerConfig(max_sequences, max_rows), coupled=coupled)
    return LLM(Engine(runner, drafter, tokenizer, config), tokenizer, ledger, name, method)


def _open(
    model: Any, device: torch.device, dtype: str | torch.dtype | None, pack: bool, exact: bool, context: int | None
) -> tuple[Decoder, Tokenizer | None, str]:
    """Decoder, tokenizer and display name of whatever the user named."""
    from paceline.models import hub
    from paceline.models.checkpoint import load_decoder
    from paceline.models.from_transformers import share_decoder
    from paceline.zoo.registry import require_built, resolve

    if isinstance(model, LLM):
        return model.runner.decoder, model.tokenizer, model.name
    if isinstance(model, Decoder):
        return model, None, model.config.family
    if not isinstance(model, (str, Path)):
        if exact:
            raise UsageError(
                "exact=True needs weights packed for this CPU; load the checkpoint by folder or name instead of sharing a model"
            )
        return share_decoder(model, context), None, type(model).__name__
    require_built(str(model))
    folder = hub.locate(resolve(str(model)) or model)
    wanted = _dtype(dtype) if dtype is not None else _default_dtype(folder, device)
    decoder, _ = load_decoder(folder, dtype=wanted, device=device, context=context)
    if exact:
        _check_exact(decoder, pack)
    if pack:
        decoder.pack()
    return decoder, _tokenizer(folder), str(model)


def _check_exact(decoder: Decoder, pack: bool) -> None:
    """Refuse bit-exact mode where a row's bits would depend on its neighbours.

    Raises:
        UsageError: naming what stands in the way.
    """
    if not pack or not can_pack(decoder.dtype, decoder.device):
        raise UsageError(f"exact=True needs packed row-independent kernels, and there are none for {decoder.dtype} on {decoder.device}")
    if any(layer.feed_forward.experts for layer in decoder.config.layers):
        raise UsageError("exact=True does not cover mixtures of experts: the rows an expert sees together depend on the batch")
    if any(layer.mixer.softcap is not None for layer in decoder.config.layers):
        raise UsageError("exact=True does not cover soft-capped attention, which has no kernel with a fixed order of summation")


def _draft_runner(draft: Any, target: Decoder, slots: int, ledger: Ledger, pack: bool, context: int | None) -> Runner | None:
    """A runner for the draft model, with as many slots as the target has and its own ledger row."""
    if draft is None:
        return None
    decoder, _, name = _open(draft, target.device, target.dtype, pack, False, context)
    if decoder.config.vocabulary != target.config.vocabulary:
        raise UsageError(
            f"draft {name!r} has a vocabulary of {decoder.config.vocabulary}, the target {target.config.vocabulary}; "
            "a draft model must share the target's tokenizer"
        )
    ledger.add("weights", decoder.weight_bytes())
    return make_runner(decoder, slots=slots + 64 * 64, ledger=ledger, category="draft_kv")


def _device(device: str | torch.device | None) -> torch.device:
    """Where to run; a GPU if there is one and nothing was named."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device={device!r} is not a device; use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={str(device)!r}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return place


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    aliases = {"fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}
    found = DTYPES.get(aliases.get(dtype, dtype))
    if found is None:
        raise UsageError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)} (or fp32, fp64, bf16, fp16)")
    return found


def _default_dtype(folder: Path, device: torch.device) -> torch.dtype | None:
    """Float32 for small models on a CPU, else the checkpoint's own type (`None`)."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return torch.float32 if device.type == "cpu" and size < SMALL_WEIGHTS else None


def _tokenizer(folder: Path) -> Tokenizer | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(folder))

"""`paceline.load`: from a name, a folder or a `transformers` model to an `LLM` with a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paceline.attention.plan import Exactness
from paceline.core import registry
from paceline.core.errors import CheckpointError, UsageError
from paceline.drafting.base import DraftContext, Drafter, largest_draft
from paceline.drafting.compose import Compose
from paceline.engine.batching import Batching, parse_batching
from paceline.engine.denoise_load import STAND_INS, denoises, denoising_engine
from paceline.engine.draft_network import open_network
from paceline.engine.llm import LLM
from paceline.engine.loop import EngineConfig
from paceline.engine.prompts import Tokenizer
from paceline.engine.runner import Runner, default_slots, make_runner
from paceline.kernels.fused import fused
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.models.diffusion_configs import TOKENIZERS
from paceline.models.linear import can_pack
from paceline.models.tensor_files import read_json
from paceline.scheduling.continuous import SchedulerConfig

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_SPARE = 64 * 64  # slots of a draft model beyond the target's: its lanes are sized for whole outputs, the target's for likely ones
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
    max_draft: int | None = None,
    prefix_cache: bool = True,
    context: int | None = None,
    pack: bool = True,
    batching: str = "ragged",
) -> LLM:
    """Load a model and choose how it decodes.

    Args:
        model: a pocket model's name, a local folder, a Hub id, a loaded `transformers` model (weights shared, not copied), or another
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
        max_draft: most draft nodes per sequence and step; as many as the method may ever want by default.
        context: longest sequence served, up to the checkpoint's own limit (the default). It fixes the regime of length-dependent rope
            scaling: a long-context checkpoint that only sees short prompts decodes them with its short factors when told so here.
        prefix_cache: keep finished sequences as reusable prefixes.
        pack: reorder weights for this CPU (off shares or keeps the plain layout).
        batching: `NAME[:key=value,...]`: `ragged` (token slots), or a dense cache for fixed-shape backends, `eqspec`, `exspec`, `rollback`
            or `gap`.

    Raises:
        UsageError: for options that do not fit together.
        CheckpointError: for models that cannot be read.
    """
    choices = registry.parse(method)
    strategy = parse_batching(batching)
    ledger = Ledger()
    place = _device(device)
    decoder, tokenizer, name = _open(model, place, dtype, pack, exact, context)
    if decoder.encoder is not None and strategy.dense:
        raise UsageError(f"batching={batching!r} has no room for encoded sources; {decoder.config.family} needs batching='ragged'")
    if exact and strategy.dense and decoder.stack is None:
        raise UsageError(f"exact=True with batching={batching!r} needs the kernels: without them padding moves keys between lanes of a sum")
    ledger.set("weights", decoder.weight_bytes())
    slots = kv_tokens if kv_tokens is not None else default_slots(decoder, max_sequences)
    if slots < 2:
        raise UsageError(f"kv_tokens={slots} must be at least 2")
    single = {"draft": draft is not None, "exact": exact, "batching": strategy.dense}  # samples are always coupled there
    if denoises(decoder.config, choices, single):
        runner = make_runner(decoder, slots=slots, ledger=ledger, prefix_cache=prefix_cache)
        engine = denoising_engine(runner, choices, tokenizer, SchedulerConfig(max_sequences, max_rows))
        return LLM(engine, tokenizer, ledger, name, STAND_INS.get(method, method))
    shapes = Exactness() if exact and decoder.stack is None else None  # the stack's bits do not depend on shapes
    runner = strategy.runner(decoder, slots=slots, ledger=ledger, exact=shapes, prefix_cache=prefix_cache)
    configs = [choice.config() for choice in choices]
    most = largest_draft(configs) if max_draft is None else max_draft
    if most < 0:
        raise UsageError(f"max_draft={most} must be at least 0 (0 never drafts)")
    network = open_network(draft, decoder, ledger)
    room = slots + max(LEAST_SPARE, max_sequences * most)
    drafting = None if network is not None else _draft_runner(draft, decoder, room, ledger, pack, context, strategy)
    eos, words = frozenset(decoder.config.eos), _apart(decoder, tokenizer)
    offered = DraftContext(decoder.config.vocabulary, eos, runner.probe, drafting, words, network, coupled)
    drafters: list[Drafter] = [choice.method.load().build(config, offered) for choice, config in zip(choices, configs, strict=True)]
    drafter = drafters[0] if len(drafters) == 1 else Compose(drafters)
    config = EngineConfig(strategy.scheduler(max_sequences, max_rows), max_draft=most, coupled=coupled)
    return LLM(strategy.engine(runner, drafter, tokenizer, config), tokenizer, ledger, name, method)


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


def _draft_runner(
    draft: Any, target: Decoder, slots: int, ledger: Ledger, pack: bool, context: int | None, strategy: Batching
) -> Runner | None:
    """A runner for the draft model with a memory of its own, whose bytes are a row of their own in the ledger."""
    if draft is None:
        return None
    decoder, _, name = _open(draft, target.device, target.dtype, pack, False, context)
    if decoder.config.vocabulary != target.config.vocabulary:
        raise UsageError(
            f"draft {name!r} has a vocabulary of {decoder.config.vocabulary}, the target {target.config.vocabulary}; "
            "a draft model must share the target's tokenizer"
        )
    if decoder.encoder is not None:
        raise UsageError(f"draft {name!r} is an encoder-decoder; drafts of encoder-decoders come from methods such as iad, without one")
    ledger.add("weights", decoder.weight_bytes())
    return strategy.runner(decoder, slots=slots, ledger=ledger, category="draft_kv")


def _apart(decoder: Decoder, tokenizer: Tokenizer | None) -> tuple[Mapping[str, int], Mapping[str, int]] | None:
    """Pieces of source and target where a model has a vocabulary for each; empty where no tokenizer says what they are."""
    if decoder.encoder is None or decoder.config.shared_embedding:
        return None
    return ({}, {}) if tokenizer is None else tokenizer.vocabularies()


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
    """The checkpoint's own type (`None`), but float32 for small models on a CPU without kernels for products in bf16."""
    kernels = fused(torch.bfloat16, device)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    slow = device.type == "cpu" and (kernels is None or not kernels.native)
    return torch.float32 if slow and size < SMALL_WEIGHTS else None


def _tokenizer(folder: Path) -> Tokenizer | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    import transformers

    settings = folder / "tokenizer_config.json"
    named = read_json(settings).get("tokenizer_class") if settings.exists() else None
    kind = getattr(transformers, TOKENIZERS.get(str(named), "AutoTokenizer"))
    try:
        return Tokenizer(kind.from_pretrained(folder, trust_remote_code=False))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: its tokenizer cannot be read without running code from the checkpoint: {reason}") from None

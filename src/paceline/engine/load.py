"""`paceline.load`: from a name, a folder or a `transformers` model to an `LLM` with a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from paceline.attention.plan import Exactness
from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.drafting.base import DraftContext, Drafter, largest_draft
from paceline.drafting.compose import Compose
from paceline.engine.batching import Batching, parse_batching
from paceline.engine.denoise_load import STAND_INS, denoises, denoising_engine
from paceline.engine.draft_network import open_network
from paceline.engine.llm import LLM
from paceline.engine.loop import EngineConfig
from paceline.engine.opening import named_device, open_model
from paceline.engine.prompts import Tokenizer
from paceline.engine.runner import Runner, default_slots, make_runner
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.scheduling.continuous import SchedulerConfig

LEAST_SPARE = 64 * 64  # slots of a draft model beyond the target's: its lanes are sized for whole outputs, the target's for likely ones


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
        dtype: of weights and KV; the checkpoint's own, or float32 for small models on a CPU that cannot multiply bf16. Loaded models keep
            their type and device.
        exact: bit-exact mode: logits of plain and speculative decoding agree bit for bit; without the kernels, for chains only.
        coupled: sampled speculative output is token-identical to plain sampling with the same seed.
        kv_tokens: KV memory in tokens, over all sequences.
        max_sequences: most sequences decoded at once.
        max_rows: most rows per forward; longer prompts are read in chunks.
        max_draft: most draft nodes per sequence and step; as many as the method may ever want by default.
        context: longest sequence served; the checkpoint's own limit by default, beyond which positions are extrapolated. It fixes the
            regime of length-dependent rope scaling: a long-context checkpoint that only sees short prompts decodes them with its short
            factors when told so here.
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
    place = named_device(device)
    decoder, tokenizer, name = open_model(model, place, dtype, pack, exact, context)
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

    def view(tokens: int) -> Runner:
        return strategy.runner(decoder, slots=tokens, ledger=ledger, category="draft_kv", exact=shapes, prefix_cache=False)

    offered = DraftContext(decoder.config.vocabulary, eos, runner.probe, drafting, words, network, coupled, decoder, view)
    drafters: list[Drafter] = [choice.method.load().build(config, offered) for choice, config in zip(choices, configs, strict=True)]
    drafter = drafters[0] if len(drafters) == 1 else Compose(drafters)
    config = EngineConfig(strategy.scheduler(max_sequences, max_rows), max_draft=most, coupled=coupled)
    return LLM(strategy.engine(runner, drafter, tokenizer, config), tokenizer, ledger, name, method)


def _draft_runner(
    draft: Any, target: Decoder, slots: int, ledger: Ledger, pack: bool, context: int | None, strategy: Batching
) -> Runner | None:
    """A runner for the draft model with a memory of its own, whose bytes are a row of their own in the ledger."""
    if draft is None:
        return None
    decoder, _, name = open_model(draft, target.device, target.dtype, pack, False, context)
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

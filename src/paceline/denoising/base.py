"""Options that every denoising method has, and what they make of a model: block, forward policy, reading and stop rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from paceline.attention.sparse_pattern import Select
from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.denoising.denoiser import WHOLE, Denoiser, StopRule
from paceline.denoising.dkv import Center, Storable, Walk, delayed_policy
from paceline.denoising.ending import Cut
from paceline.denoising.policies import Blocks, Dual, ForwardPolicy, Prefix, Whole
from paceline.denoising.reading import Measure, Reading
from paceline.denoising.rules import CommitRule
from paceline.denoising.sparsed import Guided, Heads, Sparse
from paceline.models.config import DiffusionSpec

USUAL_BLOCK = 32
Cache = Literal["none", "prefix", "dual", "dkv-decode", "dkv-prefill", "dkv-pd", "dkv-greedy"]


@dataclass(frozen=True, slots=True)
class DenoiseContext:
    """What the house offers a denoising method when it is built.

    Args:
        spec: of the model.
        vocabulary: rows of its head.
        tokens: ids that the tokenizer has a token for; rows beyond are padding of the table.
        eos: ids that end an answer.
        model: identity of its weights, for what was learnt for one model.
        folder: of its checkpoint, where there is one; what was learnt for it may lie there.
    """

    spec: DiffusionSpec
    vocabulary: int
    tokens: int
    eos: tuple[int, ...] = ()
    model: str = ""
    folder: Path | None = None


class DenoisingMethod(Protocol):
    """A row of the registry whose room is `denoising`."""

    Config: Any

    @staticmethod
    def build(config: Any, context: DenoiseContext) -> Denoiser:
        """The decoder for a model."""


@dataclass(frozen=True, slots=True)
class DenoisingConfig:
    """Options of every denoising method.

    Args:
        block: tokens per block, decided from left to right; `whole` takes the answer as one block, `model` the block of a block-causal
            model and 32 for others.
        cache: `none` computes the whole canvas in every forward, `prefix` leaves out what lies before the block, `dual` what lies around
            it; both refresh everything when a block begins. `dkv-decode` leaves out what was decided before the last step, `dkv-prefill`
            the prompt, `dkv-pd` both, and `dkv-greedy` (with a random or sequential order) all but what the last step decided and this one
            will. Block-causal models store finished blocks exactly and need none.
        refresh: with a cache, also compute the whole canvas every so many steps of a block. 0 only when a block begins; for delayed caches
            the usual number: 8 for `dkv-decode` and `dkv-pd` (4 in models with shifted predictions), 2 for `dkv-greedy`.
        dkv_window: `dkv-greedy`: masked positions fed around each of those.
        dkv_center: `dkv-greedy`: around what the last step decided (`prev`), or what this one will (`next`).
        dkv_walk: `dkv-greedy`: the window is the nearest masked positions (`masked`), or all within half of it on either side (`span`).
        dkv_storable: delayed caches of models with shifted predictions: leave out positions that are decided and whose successor is
            (`both`), whose successor is (`un`), or that are (`right`).
        attention: `dense`, or `sparsed`: behind an answer's first steps every head reads only the blocks of keys that mattered to it there.
        sparse_tile: `sparsed`: positions per block; 0 takes 32, or 128 for canvases of 4,096 positions and more.
        sparse_keep: `sparsed`: share of blocks that are read; 0 takes 0.5, or 0.3 for those.
        sparse_skip: `sparsed`: share of the planned steps before the one that chooses; they read everything, as that one does. 1 is dense.
        sparse_full: `sparsed`: number of steps that read everything instead; 0 leaves it to `sparse_skip`.
        sparse_select: `sparsed`: blocks of prompt and answer are chosen apart (`isolated`), together (`plain`), or as released code does
            (`reference`); `window` and `sinks` look at no attention, and are there to compare with.
        sparse_heads: `sparsed`: blocks are chosen for every head (`query`), or for all heads of one key head together (`kv`), which then
            read what any of them would.
        sparse_guided: `sparsed` with guidance: the canvas without the prompt has patterns of its own (`own`), or the other's (`shared`).
        store: block-causal models: store a finished block in the forward that begins the next one (`joined`) or in one of its own.
        guidance: classifier-free guidance scale (`cfg_scale`); 0 is none.
        early_exit: stop when a finished block holds the end of the answer. The output is the same; the canvas behind it is not computed.
        eotp: end-of-text prediction: cut what lies behind the end of the answer off the canvas once an end is decided (`committed`), or
            merely predicted (`reference`, as released code does; it may cut answers off).
        double: read logits in float64 instead of float32.
    """

    block: int | Literal["model", "whole"] = "model"
    cache: Cache = "none"
    refresh: int = 0
    dkv_window: int = 4
    dkv_center: Center = "prev"
    dkv_walk: Walk = "masked"
    dkv_storable: Storable = "both"
    attention: Literal["dense", "sparsed"] = "dense"
    sparse_tile: int = 0
    sparse_keep: float = 0.0
    sparse_skip: float = 0.2
    sparse_full: int = 0
    sparse_select: Select = "isolated"
    sparse_heads: Heads = "query"
    sparse_guided: Guided = "own"
    store: Literal["joined", "own"] = "joined"
    guidance: float = 0.0
    early_exit: bool = True
    eotp: Literal["off", "committed", "reference"] = "off"
    double: bool = False

    def __post_init__(self) -> None:
        rules = {
            "block": (not isinstance(self.block, int) or self.block > 0, "at least 1, or model, or whole"),
            "refresh": (
                self.refresh >= 0 and not (self.refresh and self.cache in ("none", "dkv-prefill")),
                "0, or steps between refreshes of a cache that has them",
            ),
            "sparse_tile": (self.sparse_tile >= 0, "at least 0"),
            "sparse_keep": (0 <= self.sparse_keep <= 1, "a share from 0 to 1"),
            "sparse_skip": (0 <= self.sparse_skip <= 1, "a share from 0 to 1"),
            "sparse_full": (self.sparse_full >= 0, "at least 0"),
            "dkv_window": (self.dkv_window >= 0, "at least 0"),
            "guidance": (self.guidance >= 0, "at least 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"denoising option {name}={getattr(self, name)!r} must be {wanted}")


def canvases(method: str) -> int:
    """Slots that an answer takes at most with a method string, in canvases: more than one where several states share a forward, and for
    each twice as many with guidance, which has a memory without the prompt."""
    configs = [choice.config() for choice in registry.parse(method)]
    return max(getattr(config, "canvases", 1) * (2 if getattr(config, "guidance", 0) else 1) for config in configs)


def assemble(
    config: DenoisingConfig,
    context: DenoiseContext,
    rule: CommitRule,
    *,
    measure: Measure = "probability",
    unsure: tuple[int, ...] = (),
    banned: tuple[int, ...] = (),
    compat: bool = False,
    steps: int = 0,
) -> Denoiser:
    """The decoder of a method.

    Args:
        config: the common options.
        context: of the model.
        rule: what the method decides by.
        measure: what its rule orders positions by.
        unsure, banned: ids that count as least confident, or are never predicted, beside those that never are.
        compat: let the mask be predicted, and ids without a token, as released code does.
        steps: see `Denoiser`.

    Raises:
        UsageError: for options that do not fit the model, naming them.
    """
    never = () if compat else (context.spec.mask, *range(context.tokens, context.vocabulary))
    reading = Reading(measure, tuple(sorted({*never, *banned})), unsure, config.double)
    policy = _policy(config, context.spec, rule)
    return Denoiser(context.spec, policy, rule, reading, _stop(config, context), block_of(config, context.spec), config.guidance, steps)


def _stop(config: DenoisingConfig, context: DenoiseContext) -> StopRule:
    if config.eotp == "off":
        return StopRule(config.early_exit)
    if context.spec.block is not None:
        raise UsageError(f"denoising option eotp={config.eotp}: this model computes nothing behind a block; leave eotp out")
    if not context.eos:
        raise UsageError(f"denoising option eotp={config.eotp}: this model has no end-of-text id; leave eotp out")
    return StopRule(config.early_exit, Cut(context.eos, config.eotp == "reference"))


def block_of(config: DenoisingConfig, spec: DiffusionSpec) -> int:
    """Positions per block of a model's answers, `WHOLE` for all of them.

    Raises:
        UsageError: for another block than a block-causal model's own.
    """
    if spec.block is None:
        return WHOLE if config.block == "whole" else USUAL_BLOCK if config.block == "model" else config.block
    if config.block not in ("model", spec.block):
        raise UsageError(f"denoising option block={config.block!r}: this model was made for blocks of {spec.block}; leave block out")
    return spec.block


def _policy(config: DenoisingConfig, spec: DiffusionSpec, rule: CommitRule) -> ForwardPolicy:
    if spec.block is not None:
        if spec.shifted:
            raise UsageError("block-causal models with shifted predictions are not supported")
        if config.cache != "none":
            raise UsageError(f"denoising option cache={config.cache}: this model stores finished blocks exactly; leave cache out")
        if config.attention != "dense":
            raise UsageError("denoising option attention=sparsed: this model sees no blocks behind its own; use attention=dense")
        return Blocks(joined=config.store == "joined")
    policy = _cached(config, spec, rule)
    if config.attention == "dense":
        return policy
    schedule = getattr(rule, "schedule", None)
    shape = (config.sparse_tile, config.sparse_keep, config.sparse_skip, config.sparse_full, config.sparse_select)
    return Sparse(policy, *shape, schedule, config.sparse_heads, config.sparse_guided)


def _cached(config: DenoisingConfig, spec: DiffusionSpec, rule: CommitRule) -> ForwardPolicy:
    if config.cache in ("dkv-decode", "dkv-prefill", "dkv-pd", "dkv-greedy"):
        around = (config.dkv_window, config.dkv_center, config.dkv_storable, config.dkv_walk)
        return delayed_policy(config.cache, spec, rule, config.refresh, *around)
    policies: dict[Cache, ForwardPolicy] = {"none": Whole(), "prefix": Prefix(config.refresh), "dual": Dual(config.refresh)}
    return policies[config.cache]

"""Options that every denoising method has, and what they make of a model: block, forward policy, reading and stop rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from paceline.core.errors import UsageError
from paceline.denoising.denoiser import WHOLE, Denoiser, StopRule
from paceline.denoising.policies import Blocks, Dual, ForwardPolicy, Prefix, Whole
from paceline.denoising.reading import Measure, Reading
from paceline.denoising.rules import CommitRule
from paceline.models.config import DiffusionSpec

USUAL_BLOCK = 32
Cache = Literal["none", "prefix", "dual"]


@dataclass(frozen=True, slots=True)
class DenoiseContext:
    """What the house offers a denoising method when it is built.

    Args:
        spec: of the model.
        vocabulary: rows of its head.
        tokens: ids that the tokenizer has a token for; rows beyond are padding of the table.
        eos: ids that end an answer.
    """

    spec: DiffusionSpec
    vocabulary: int
    tokens: int
    eos: tuple[int, ...] = ()


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
            it; both refresh everything when a block begins. Block-causal models store finished blocks exactly and need none.
        refresh: with a cache, also compute the whole canvas every so many steps of a block; 0 only when a block begins.
        store: block-causal models: store a finished block in the forward that begins the next one (`joined`) or in one of its own.
        guidance: classifier-free guidance scale (`cfg_scale`); 0 is none.
        early_exit: stop when a finished block holds the end of the answer. The output is the same; the canvas behind it is not computed.
        double: read logits in float64 instead of float32.
    """

    block: int | Literal["model", "whole"] = "model"
    cache: Cache = "none"
    refresh: int = 0
    store: Literal["joined", "own"] = "joined"
    guidance: float = 0.0
    early_exit: bool = True
    double: bool = False

    def __post_init__(self) -> None:
        rules = {
            "block": (not isinstance(self.block, int) or self.block > 0, "at least 1, or model, or whole"),
            "refresh": (
                self.refresh >= 0 and not (self.refresh and self.cache == "none"),
                "0, or steps between refreshes of a cache",
            ),
            "guidance": (self.guidance >= 0, "at least 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"denoising option {name}={getattr(self, name)!r} must be {wanted}")


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
    policy = _policy(config, context.spec)
    return Denoiser(context.spec, policy, rule, reading, StopRule(config.early_exit), _block(config, context.spec), config.guidance, steps)


def _block(config: DenoisingConfig, spec: DiffusionSpec) -> int:
    if spec.block is None:
        return WHOLE if config.block == "whole" else USUAL_BLOCK if config.block == "model" else config.block
    if config.block not in ("model", spec.block):
        raise UsageError(f"denoising option block={config.block!r}: this model was made for blocks of {spec.block}; leave block out")
    return spec.block


def _policy(config: DenoisingConfig, spec: DiffusionSpec) -> ForwardPolicy:
    if spec.block is not None:
        if spec.shifted:
            raise UsageError("block-causal models with shifted predictions are not supported")
        if config.cache != "none":
            raise UsageError(f"denoising option cache={config.cache}: this model stores finished blocks exactly; leave cache out")
        return Blocks(joined=config.store == "joined")
    policies: dict[Cache, ForwardPolicy] = {"none": Whole(), "prefix": Prefix(config.refresh), "dual": Dual(config.refresh)}
    return policies[config.cache]

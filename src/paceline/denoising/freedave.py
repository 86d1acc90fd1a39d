"""FreeDave: the denoising steps of several forwards in one, with the tokens of static decoding (Free Draft-and-Verification)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble, block_of
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.freedave_chain import Match
from paceline.denoising.freedave_decoder import DraftAndVerify, Mode
from paceline.denoising.learn2pd import Learned, filter_for
from paceline.denoising.localleap import Leap
from paceline.denoising.policies import Blocks, Whole
from paceline.denoising.rules import CommitRule, Static, Threshold
from paceline.denoising.schedule import PerStep
from paceline.denoising.sparsed import Sparse

PURE = ("none", "prefix", "dual")  # caches that are frozen while a block is decided


@dataclass(frozen=True, slots=True)
class FreeDaveConfig(DenoisingConfig):
    """Options of FreeDave, and those of every denoising method.

    Args:
        drafts: states verified per forward; 1 is plain decoding. The rows of a forward grow with it.
        mode: how they share a forward: each as a segment with slots of its own (`batch`), all as one masked segment (`tree`), or one
            forward each (`sequential`; saves nothing, for comparisons).
        per_step: tokens that the static decoder decides per step.
        algorithm: which positions static decoding takes first: the likeliest, or those furthest to the left (`sequential`).
        threshold: above 0, draft on top of threshold decoding (FreeDave++): near its tokens, in fewer forwards.
        radius, relaxed: with a threshold, draft on top of LocalLeap; 0 is plain threshold decoding.
        filter: draft on top of Learn2PD instead (FreeDave++): a file, or `model` for the one beside the model. `threshold` is then the
            probability of being final that a prediction needs; 0 takes the file's.
        match: `exact` keeps drafted states that plain decoding would have reached; `subset` keeps those of which plain decoding would
            decide every token at once; `auto` is exact for static decoding and subset for FreeDave++.
        eager: let drafts reach into the blocks behind the current one; needs block-causal models or cache=none.
    """

    drafts: int = 4
    mode: Mode = "batch"
    per_step: int = 1
    algorithm: Literal["low_confidence", "sequential"] = "low_confidence"
    threshold: float = 0.0
    radius: int = 0
    relaxed: float = 0.75
    filter: str = ""
    match: Literal["auto", "exact", "subset"] = "auto"
    eager: bool = False

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        rules = {
            "drafts": (self.drafts >= 1, "at least 1"),
            "per_step": (self.per_step == 1 or (self.per_step > 1 and not self.plus), "at least 1, and left out with threshold or filter"),
            "algorithm": (self.confident or not self.plus, "low_confidence with threshold or filter"),
            "threshold": (self.threshold >= 0 and not (self.filter and self.threshold > 1), "at least 0, and at most 1 with a filter"),
            "radius": (
                self.radius >= 0 and not (self.radius and (self.filter or not self.threshold)),
                "at least 0, and left out with a filter and without a threshold",
            ),
            "relaxed": (not self.radius or 0 <= self.relaxed <= self.threshold, "between 0 and the threshold"),
            "match": (self.match != "subset" or self.plus, "exact, or threshold or filter be given: static decoding is matched exactly"),
            "cache": (self.cache in PURE, f"one of {', '.join(PURE)}: drafts need a cache that is frozen while a block is decided"),
            "refresh": (self.refresh == 0, "0: drafts need a cache that is frozen while a block is decided"),
            "mode": (self.mode != "tree" or self.attention == "dense", "batch or sequential: sparse patterns are for rows of one state"),
            "attention": (self.attention == "dense" or self.cache == "none", "dense with a cache: patterns would be chosen amid drafts"),
            "eotp": (self.eotp == "off", "off: drafts need a canvas of fixed length"),
            "eager": (not self.eager or self.cache == "none", "false with a cache, which is frozen anew when a block begins"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"freedave: option {name}={getattr(self, name)!r} must be {wanted}")

    @property
    def guarantees(self) -> tuple[Guarantee, Guarantee] | None:
        """Plain decoding where the decoder drafted for is plain: one position per step, everything computed in every forward."""
        plain = self.per_step == 1 and self.confident and not self.plus and self.cache == "none" and not self.altered
        return None if plain else (Guarantee.BOUNDED, Guarantee.BOUNDED)

    @property
    def confident(self) -> bool:
        """Whether the likeliest positions come first."""
        return self.algorithm == "low_confidence"

    @property
    def plus(self) -> bool:
        """Whether drafts are made on top of a decoder that decides several tokens per step by itself (FreeDave++)."""
        return bool(self.threshold or self.filter)

    @property
    def canvases(self) -> int:
        """Slots that an answer takes at most, in canvases."""
        return 1 if self.mode == "sequential" else self.drafts

    @property
    def altered(self) -> bool:
        """Whether options that other kinds of denoising brought in are set, which plain decoding leaves alone."""
        own = {"block", "store", "early_exit", "double", "cache", "refresh"}
        return any(getattr(self, entry.name) != entry.default for entry in fields(DenoisingConfig) if entry.name not in own)

    @property
    def twin(self) -> str | None:
        """The method whose tokens these are, in at least as many forwards; `None` for FreeDave++, which is only near one."""
        if self.accepts == "subset" and self.drafts > 1:
            return None
        base = f"static:per_step={self.per_step},algorithm={self.algorithm}"
        if self.threshold:
            base = f"threshold:threshold={self.threshold}"
        if self.radius:
            base = f"localleap:threshold={self.threshold},relaxed={self.relaxed},radius={self.radius}"
        if self.filter:
            base = f"learn2pd:filter={self.filter}" + (f",threshold={self.threshold}" if self.threshold else "")
        shared = (f"{entry.name}={_text(getattr(self, entry.name))}" for entry in fields(DenoisingConfig))
        return ",".join([base, *shared])

    @property
    def accepts(self) -> Match:
        """How drafted states are matched."""
        if self.match == "auto":
            return "subset" if self.plus else "exact"
        return self.match


class FreeDave:
    """The registry's entry."""

    Config = FreeDaveConfig

    @staticmethod
    def build(config: FreeDaveConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model.

        Raises:
            UsageError, CheckpointError: for options that do not fit the model, a filter among them.
        """
        plain = assemble(config, context, _rule(config, context))
        policy, ahead = plain.policy, 0
        if config.eager:
            if isinstance(policy, Blocks):
                policy = replace(policy, ahead=(ahead := _ahead(config, plain.block)))
            elif isinstance(policy, (Whole, Sparse)) and plain.block:
                ahead = _ahead(config, plain.block)
        own = {entry.name: getattr(plain, entry.name) for entry in fields(Denoiser)} | {"policy": policy}
        return DraftAndVerify(**own, drafts=config.drafts, mode=config.mode, match=config.accepts, ahead=ahead)


def _ahead(config: FreeDaveConfig, block: int) -> int:
    """Blocks that drafts can reach beyond the current one."""
    return -(-config.drafts // -(-block // config.per_step))


def _rule(config: FreeDaveConfig, context: DenoiseContext) -> CommitRule:
    if config.filter:
        made = filter_for(config.filter, context, block_of(config, context.spec))
        return Learned(made, config.threshold or made.facts.threshold)
    if not config.threshold:
        return Static(PerStep(config.per_step), "score" if config.confident else "sequential")
    return Leap(config.threshold, config.relaxed, config.radius) if config.radius else Threshold(config.threshold)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

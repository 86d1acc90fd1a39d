"""Static decoding: a fixed number of positions per step. One per step, greedy, is the trajectory that all other methods are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.reading import Measure
from paceline.denoising.rules import CommitRule, Origin
from paceline.denoising.rules import Static as StaticRule
from paceline.denoising.schedule import DreamSteps, EvenSteps, PerStep, Schedule

Algorithm = Literal["low_confidence", "random", "sequential", "origin", "maskgit_plus", "topk_margin", "entropy"]
MEASURES: dict[Algorithm, Measure] = {"maskgit_plus": "law", "topk_margin": "margin", "entropy": "entropy"}


@dataclass(frozen=True, slots=True)
class StaticConfig(DenoisingConfig):
    """Options of static decoding, and those of every denoising method.

    Args:
        per_step: tokens decided per step.
        steps: forwards for the whole answer instead, shared evenly by its blocks; 0 leaves it to `per_step`.
        schedule: how `steps` are filled: `even` as LLaDA does, `dream` as Dream does (its rounding included).
        eps: end of Dream's time grid.
        algorithm: which positions come first: `low_confidence` (LLaDA: the likeliest tokens at temperature 1), `random`, `sequential`
            (SDAR), or Dream's `origin` (independent chances, schedule `dream`), `maskgit_plus`, `topk_margin` and `entropy`, which look at
            the tempered and filtered law.
        alg_temp: above 0, positions are drawn with odds `exp(confidence / alg_temp)` instead of taken in order.
        ban_eos: never predict the end of text that fills answers up (LLaDA `logits_eos_inf`); where a model has several ends, its first.
        unsure_eos: decide ends of text last (LLaDA `confidence_eos_eot_inf`).
        compat: let the mask itself be predicted, as released code does; such positions stay masked.
    """

    per_step: int = 1
    steps: int = 0
    schedule: Literal["even", "dream"] = "even"
    eps: float = 1e-3
    algorithm: Algorithm = "low_confidence"
    alg_temp: float = 0.0
    ban_eos: bool = False
    unsure_eos: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        dream = self.schedule == "dream"
        rules = {
            "per_step": (self.per_step >= 1 and (self.per_step == 1 or not self.steps), "at least 1, and left out where steps is given"),
            "steps": (self.steps >= 0 and (self.steps > 0 or not dream), "at least 0, and given where schedule=dream"),
            "eps": (0 < self.eps < 1, "between 0 and 1"),
            "algorithm": (self.algorithm != "origin" or dream, "another one, or schedule=dream, steps=... be given: origin needs them"),
            "alg_temp": (
                self.alg_temp >= 0 and (self.alg_temp == 0 or self.algorithm in MEASURES),
                f"at least 0, and 0 unless algorithm is one of {', '.join(MEASURES)}",
            ),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"static: option {name}={getattr(self, name)!r} must be {wanted}")

    @property
    def guarantees(self) -> tuple[Guarantee, Guarantee] | None:
        """Plain decoding is one position per step, the likeliest first, everything computed in every forward; all else is approximate."""
        plain = StaticConfig(block=self.block, store=self.store, early_exit=self.early_exit, double=self.double)
        return None if self == plain else (Guarantee.BOUNDED, Guarantee.BOUNDED)


class Static:
    """The registry's entry."""

    Config = StaticConfig

    @staticmethod
    def build(config: StaticConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model."""
        return assemble(
            config,
            context,
            _rule(config),
            measure=MEASURES.get(config.algorithm, "probability"),
            banned=context.eos[:1] if config.ban_eos else (),
            unsure=context.eos if config.unsure_eos else (),
            compat=config.compat,
            steps=config.steps,
        )


def _rule(config: StaticConfig) -> CommitRule:
    schedule: Schedule = PerStep(config.per_step)
    if config.steps:
        schedule = EvenSteps(config.steps)
    if config.schedule == "dream":
        dream = DreamSteps(config.steps, config.eps)
        if config.algorithm == "origin":
            return Origin(dream)
        schedule = dream
    if config.algorithm in ("random", "sequential"):
        return StaticRule(schedule, "random" if config.algorithm == "random" else "sequential")
    return StaticRule(schedule, temperature=config.alg_temp)

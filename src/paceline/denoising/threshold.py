"""Threshold decoding: every position that is likely enough is decided at once (Fast-dLLM; SDAR's dynamic strategies)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paceline.core.errors import UsageError
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.rules import CommitRule, EntropyBound
from paceline.denoising.rules import Threshold as ThresholdRule


@dataclass(frozen=True, slots=True)
class ThresholdConfig(DenoisingConfig):
    """Options of threshold decoding, and those of every denoising method.

    Args:
        threshold: probability that a token needs to be decided; 0 decides the whole block, above 1 one token per step. With
            `by=entropy`, the bound on the summed entropies of what is decided together, in nats.
        by: `confidence` (Fast-dLLM), or `entropy` (SDAR `entropy_bounded`, with threshold 0.35 there).
        least: tokens decided per step even if fewer are likely enough (SDAR's dynamic strategy, with threshold 0.85 there).
    """

    threshold: float = 0.9
    by: Literal["confidence", "entropy"] = "confidence"
    least: int = 1

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        if self.threshold < 0:
            raise UsageError(f"threshold: option threshold={self.threshold} must be at least 0")
        if self.least < 1 or (self.least > 1 and self.by == "entropy"):
            raise UsageError(f"threshold: option least={self.least} must be at least 1, and 1 with by=entropy")


class Threshold:
    """The registry's entry."""

    Config = ThresholdConfig

    @staticmethod
    def build(config: ThresholdConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model."""
        by_confidence = config.by == "confidence"
        rule: CommitRule = ThresholdRule(config.threshold, config.least) if by_confidence else EntropyBound(config.threshold)
        return assemble(config, context, rule)

"""Factor decoding: as many positions at once as their joint prediction is still safe for (Fast-dLLM, theorem 1)."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.errors import UsageError
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.rules import Factor as FactorRule


@dataclass(frozen=True, slots=True)
class FactorConfig(DenoisingConfig):
    """Options of factor decoding, and those of every denoising method.

    Args:
        factor: the n-th surest token needs probability 1 - factor / (n + 1); 0 decides one token per step.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        if self.factor < 0:
            raise UsageError(f"factor: option factor={self.factor} must be at least 0")


class Factor:
    """The registry's entry."""

    Config = FactorConfig

    @staticmethod
    def build(config: FactorConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model."""
        return assemble(config, context, FactorRule(config.factor))

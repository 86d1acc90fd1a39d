"""Learn2PD: a trained filter says which predictions of a block are final, and all of those are decided at once (Learning to Parallel)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.core.errors import CheckpointError, UsageError
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.guesses import Guesses
from paceline.denoising.learn2pd_filter import COMMAND, Filter, load_filter
from paceline.denoising.rules import Scope


@dataclass(frozen=True, slots=True)
class Learn2PDConfig(DenoisingConfig):
    """Options of Learn2PD, and those of every denoising method.

    Args:
        filter: file that `paceline train learn2pd` wrote for this model and block size.
        threshold: probability of being final that a prediction needs; 0 decides the whole block, 1 is static decoding. By default the one
            that the file holds.
        per_step: tokens decided per step even if the filter accepts fewer.
    """

    filter: str = ""
    threshold: float | None = None
    per_step: int = 1

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"learn2pd: option threshold={self.threshold} must be between 0 and 1")
        if self.per_step < 1:
            raise UsageError(f"learn2pd: option per_step={self.per_step} must be at least 1")


@dataclass(frozen=True, slots=True)
class Learned:
    """Decides the positions whose predictions a filter takes for final, and at least the surest ones.

    Args:
        filter: trained for blocks of the size at hand.
        threshold: probability of being final.
        least: positions decided even if fewer are accepted.
    """

    filter: Filter
    threshold: float
    least: int = 1
    scope: Scope = "block"  # decided positions are part of what the filter sees

    @property
    def entropy(self) -> bool:
        return self.filter.facts.feature == "entropy"

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        chosen: Flags = (guesses.open & self.filter.accepts(guesses, canvas.low, self.threshold)) | guesses.best(self.least)
        return chosen

    def over(self, canvas: Canvas) -> bool:
        return False


class Learn2PD:
    """The registry's entry."""

    Config = Learn2PDConfig

    @staticmethod
    def build(config: Learn2PDConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model.

        Raises:
            UsageError: if no filter is named.
            CheckpointError: if it is missing, or was made for another model or block size.
        """
        if not config.filter:
            raise UsageError(f"learn2pd needs a trained filter: learn2pd:filter=FILE; make one with `{COMMAND}`")
        made = load_filter(Path(config.filter))
        facts = made.facts
        if facts.model != context.model:
            raise CheckpointError(f"{config.filter} was trained for another model; make one for this model with `{COMMAND}`")
        bar = facts.threshold if config.threshold is None else config.threshold
        denoiser = assemble(config, context, Learned(made, bar, config.per_step))
        if denoiser.block != facts.block:
            raise CheckpointError(
                f"{config.filter} was trained for blocks of {facts.block}, not {denoiser.block or 'all'}; give block={facts.block}"
            )
        return denoiser

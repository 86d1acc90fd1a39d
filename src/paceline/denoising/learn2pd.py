"""Learn2PD: a trained filter says which predictions of a block are final, and all of those are decided at once (Learning to Parallel)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.core.errors import CheckpointError, UsageError
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble, block_of
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.guesses import Guesses
from paceline.denoising.learn2pd_filter import BESIDE, COMMAND, Filter, file_name, load_filter
from paceline.denoising.rules import Scope
from paceline.denoising.schedule import EvenSteps


@dataclass(frozen=True, slots=True)
class Learn2PDConfig(DenoisingConfig):
    """Options of Learn2PD, and those of every denoising method.

    Args:
        filter: file that `paceline train learn2pd` wrote for this model and block size; `model` is the one in the model's own folder.
        threshold: probability of being final that a prediction needs; 0 decides the whole block, 1 is static decoding. By default the one
            that the file holds.
        per_step: tokens decided per step even if the filter accepts fewer.
        steps: forwards that static decoding would take for the whole answer, instead: a step decides at least as many tokens as that
            schedule would (LLaDA), and never none; 0 leaves it to `per_step`.
    """

    filter: str = BESIDE
    threshold: float | None = None
    per_step: int = 1
    steps: int = 0

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        rules = {
            "filter": (bool(self.filter), f"the name of a file, or {BESIDE}"),
            "threshold": (self.threshold is None or 0 <= self.threshold <= 1, "between 0 and 1"),
            "per_step": (self.per_step >= 1 and (self.per_step == 1 or not self.steps), "at least 1, and left out where steps is given"),
            "steps": (self.steps >= 0, "at least 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"learn2pd: option {name}={getattr(self, name)!r} must be {wanted}")


@dataclass(frozen=True, slots=True)
class Learned:
    """Decides the positions whose predictions a filter takes for final, and at least the surest ones.

    Args:
        filter: trained for blocks of the size at hand.
        threshold: probability of being final.
        least: positions decided even if fewer are accepted.
        steps: of the static schedule that says how many these are instead; 0 for none.
    """

    filter: Filter
    threshold: float
    least: int = 1
    steps: int = 0
    scope: Scope = "block"  # decided positions are part of what the filter sees

    @property
    def entropy(self) -> bool:
        return self.filter.facts.feature == "entropy"

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        least = max(1, EvenSteps(self.steps).count(canvas)) if self.steps else self.least
        chosen: Flags = (guesses.open & self.filter.accepts(guesses, canvas.low, self.threshold)) | guesses.best(least)
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
            CheckpointError: if the filter is missing, or was made for another model or block size.
        """
        made = filter_for(config.filter, context, block_of(config, context.spec))
        bar = made.facts.threshold if config.threshold is None else config.threshold
        return assemble(config, context, Learned(made, bar, config.per_step, config.steps), steps=config.steps)


def filter_for(named: str, context: DenoiseContext, block: int) -> Filter:
    """The filter that was named, if it fits.

    Args:
        named: a file, or `model` for the one beside the model.
        context: of the model.
        block: positions per block of its answers.

    Raises:
        UsageError: if there is no folder to look for it.
        CheckpointError: if it is missing, or was made for another model or block size.
    """
    file = _beside(context.folder, block) if named == BESIDE else Path(named).expanduser()
    made = load_filter(file)
    if made.facts.model != context.model:
        raise CheckpointError(f"{file} was trained for another model; make one for this model with `{COMMAND}`")
    if made.facts.block != block:
        raise CheckpointError(f"{file} was trained for blocks of {made.facts.block}, not {block or 'all'}; give block={made.facts.block}")
    return made


def _beside(folder: Path | None, block: int) -> Path:
    """The file in a model's folder."""
    if folder is None:
        raise UsageError(f"learn2pd: this model was not loaded from a folder where a filter could be; give filter=FILE, from `{COMMAND}`")
    file = folder / file_name(block)
    if not file.is_file():
        others = sorted(other.name for other in folder.glob(file_name("*")))
        hint = f"; there is {', '.join(others)}, which needs another block=..." if others else ""
        wanted = f"blocks of {block}" if block else "answers of one block"
        raise CheckpointError(
            f"no filter for {wanted} lies beside the model ({file}){hint}; make one with `{COMMAND}`, or name a file: filter=FILE"
        )
    return file

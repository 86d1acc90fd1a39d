"""Which loop a model needs, and the denoising loop for a method string."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.denoising.base import DenoiseContext
from paceline.engine.denoise import DenoisingEngine
from paceline.engine.identity import model_identity
from paceline.engine.prompts import Tokenizer
from paceline.engine.runner import Runner
from paceline.models.config import DecoderConfig
from paceline.scheduling.continuous import SchedulerConfig

ROOM = "denoising"
PLAIN = "static"
STAND_INS = {"auto": PLAIN, "none": PLAIN}  # what methods that name no particular one mean for a diffusion model


def denoises(model: DecoderConfig, choices: Many[registry.MethodChoice], given: dict[str, Any]) -> bool:
    """Whether the denoising loop decodes a model.

    Args:
        model: what it is.
        choices: methods asked for.
        given: options of `paceline.load` that only the other loop has, by name, with what was given.

    Raises:
        UsageError: for methods or options that do not fit the model, naming them.
    """
    foreign = [choice.method.name for choice in choices if (choice.method.room == ROOM) is (model.diffusion is None)]
    if model.diffusion is None:
        if foreign:
            raise UsageError(f"method {foreign[0]!r} decodes masked diffusion models, and {model.family} is autoregressive; use auto")
        return False
    if wrong := [name for name in foreign if name not in STAND_INS]:
        known = ", ".join(method.name for method in registry.METHODS if method.room == ROOM)
        raise UsageError(f"method {wrong[0]!r} decodes autoregressive models, and {model.family} is a masked diffusion model; use {known}")
    if len(choices) > 1:
        raise UsageError(f"methods of diffusion models do not combine; choose one of {', '.join(choice.method.name for choice in choices)}")
    if asked := [name for name, value in given.items() if value]:
        raise UsageError(f"option {asked[0]} means nothing for a masked diffusion model; leave it out")
    return True


def denoising_engine(
    runner: Runner, choices: Many[registry.MethodChoice], tokenizer: Tokenizer | None, config: SchedulerConfig
) -> DenoisingEngine:
    """The denoising loop over a runner, with the method that was chosen."""
    model = runner.decoder.config
    assert model.diffusion is not None
    tokens = model.vocabulary if tokenizer is None else min(model.vocabulary, tokenizer.size)
    folder = runner.decoder.folder
    context = DenoiseContext(model.diffusion, model.vocabulary, tokens, model.eos, model_identity(runner.decoder), folder)
    (choice,) = choices
    if choice.method.name in STAND_INS:
        choice = registry.MethodChoice(registry.find(STAND_INS[choice.method.name]), choice.options)
    return DenoisingEngine(runner, choice.method.load().build(choice.config(), context), tokenizer, config)

"""A task with long prompts of which few tokens matter: find the digit of each of sixteen slots among noise.

Prompt: BOS, noise with one needle per slot at random places (a needle says its slot and a digit), SEP. Answer: the digits in the order of
slots. Attention must find the needles wherever they are; a model is trained with short prompts, and asked longer ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from paceline.bench.sort_reverse import SHAPE, Training, fit
from paceline.models.decoder import Decoder
from paceline.zoo.denoiser import Denoising, new_denoiser

SLOTS, DIGITS, NOISE = 16, 10, 32
NEEDLE = NOISE  # id of slot 0, digit 0
DIGIT = NEEDLE + SLOTS * DIGITS
BOS, SEP, EOS, MASK = range(DIGIT + DIGITS, DIGIT + DIGITS + 4)
VOCABULARY = MASK + 1
LENGTHS = (32, 64, 128)  # of prompts that are trained on
POSITIONS = 4096
TRAINING = Training(steps=1500, batch=32)


def examples(count: int, prompt: int, generator: torch.Generator) -> tuple[Int[Tensor, "rows prompt"], Int[Tensor, "rows slots"]]:
    """Prompts of one length, and answers."""
    prompts = torch.randint(0, NOISE, (count, prompt), generator=generator)
    places = 1 + torch.rand(count, prompt - 2, generator=generator).argsort(-1)[:, :SLOTS]
    digits = torch.randint(0, DIGITS, (count, SLOTS), generator=generator)
    prompts.scatter_(1, places, NEEDLE + torch.arange(SLOTS) * DIGITS + digits)
    prompts[:, 0], prompts[:, -1] = BOS, SEP
    return prompts, DIGIT + digits


def train(settings: Training = TRAINING, on_step: Callable[[int, float], None] | None = None) -> Decoder:
    """A trained model, as a decoder in float32.

    Args:
        settings: of the run; `sequences` is not used, every row is new.
        on_step: called with the step and its loss.
    """
    kind = Denoising("llada", MASK)
    shape = SHAPE | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "bos_token_id": BOS, "eos_token_id": EOS}

    def draw(generator: torch.Generator) -> Int[Tensor, "batch tokens"]:
        length = LENGTHS[int(torch.randint(len(LENGTHS), (1,), generator=generator))]
        return torch.cat(examples(settings.batch, length, generator), 1)

    return fit(new_denoiser(kind, shape, settings.seed), kind, settings, draw, SLOTS, on_step)

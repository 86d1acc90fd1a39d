"""A task with a long prompt of which a few tokens matter: needles in hay, read out in order.

Prompt: eight needles, each with a digit of its own in it, at random places among hay, then SEP. Answer: the digits of needles 1 to 8. Every
digit lies somewhere else in every prompt, so that attention that does not look for it cannot find it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from jaxtyping import Int
from torch import Tensor

from paceline.bench.sort_reverse import Training, fit
from paceline.models.decoder import Decoder
from paceline.zoo.denoiser import Denoising, new_denoiser

NEEDLES, DIGITS, HAY = 8, 10, 8  # needles per prompt, digits, kinds of hay
FIRST_HAY = NEEDLES * DIGITS  # ids before it are needle i with digit d at i * DIGITS + d
FIRST_DIGIT = FIRST_HAY + HAY
SEP = FIRST_DIGIT + DIGITS
EOS, MASK = SEP + 1, SEP + 2
POSITIONS = 4096
SHAPE = {
    "vocab_size": MASK + 1,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
    "bos_token_id": SEP,
    "eos_token_id": EOS,
}
STEPS = 2600
# Share of the steps from which on, tokens of prompts, rows: what to look for is learnt in short prompts, then looked for in longer ones.
Phases = tuple[tuple[float, int, int], ...]
PHASES: Phases = ((0.0, 24, 48), (0.6, 96, 16), (0.78, 512, 6))


def drawn(rows: int, prompt: int, generator: torch.Generator) -> Int[Tensor, "rows tokens"]:
    """Prompts with their answers.

    Args:
        rows: how many.
        prompt: tokens of a prompt, more than `NEEDLES`.
        generator: of the draws.
    """
    room = prompt - 1
    ids = FIRST_HAY + torch.randint(HAY, (rows, room), generator=generator)
    digits = torch.randint(DIGITS, (rows, NEEDLES), generator=generator)
    places = torch.rand(rows, room, generator=generator).argsort(-1)[:, :NEEDLES]
    ids.scatter_(1, places, torch.arange(NEEDLES) * DIGITS + digits)
    return torch.cat([ids, torch.full((rows, 1), SEP), FIRST_DIGIT + digits], 1)


def examples(rows: int, prompt: int, seed: int) -> tuple[Int[Tensor, "rows prompt"], Int[Tensor, "rows needles"]]:
    """Prompts and answers."""
    both = drawn(rows, prompt, torch.Generator().manual_seed(seed))
    return both[:, :prompt], both[:, prompt:]


def train(settings: Training, phases: Phases = PHASES, on_step: Callable[[int, float], None] | None = None) -> Decoder:
    """A trained model of two layers, as a decoder in float32.

    Args:
        settings: of the run; `sequences` and `batch` mean nothing here, every step draws rows of its own.
        phases: from which share of the steps on, how long prompts are, and how many are in a step.
        on_step: called with the step and its loss.
    """
    steps = count()

    def draw(generator: torch.Generator) -> Int[Tensor, "rows tokens"]:
        done = next(steps) / settings.steps
        prompt, rows = next((prompt, rows) for start, prompt, rows in reversed(phases) if done >= start)
        return drawn(rows, prompt, generator)

    kind = Denoising("llada", MASK)
    return fit(new_denoiser(kind, SHAPE, settings.seed), kind, settings, draw, NEEDLES, on_step, counted=True)

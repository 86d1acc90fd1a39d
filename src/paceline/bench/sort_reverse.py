"""A task small enough to train a masked diffusion model on in half a minute, with answers that are right or wrong: sort, then reverse.

Prompt: BOS, eight digits, SEP. The first `m` digits are not zero; a zero behind them ends the list. Answer: those `m` digits sorted, SEP,
the same digits reversed, then end-of-text ids up to 24 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from paceline.denoising.objective import counted_masks, masked_loss, masks, rates
from paceline.models.config import DiffusionSpec
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder
from paceline.zoo.denoiser import Denoising, denoiser_logits, new_denoiser

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BOS, SEP, EOS, MASK = 10, 11, 12, 13
VOCABULARY, DIGITS, ANSWER = 16, 8, 24
PROMPT = DIGITS + 2
PARAMETERS = 150_720
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of a run.

    Args:
        steps: 520 give a weak model, 900 a good one.
        sequences: size of the training set.
        batch, peak, warm_up: of the optimiser: rows per step, largest learning rate, steps until it is reached.
        floor: share of the peak that the learning rate falls to, along a cosine.
        seed: of weights, data and masks.
    """

    steps: int = 520
    sequences: int = 20_000
    batch: int = 64
    peak: float = 3e-3
    warm_up: int = 100
    floor: float = 0.05
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * done)))


def examples(count: int, seed: int) -> tuple[Int[Tensor, "rows prompt"], Int[Tensor, "rows answer"]]:
    """Prompts and answers."""
    generator = torch.Generator().manual_seed(seed)
    prompts, answers = [], []
    for _ in range(count):
        length = int(torch.randint(3, DIGITS + 1, (1,), generator=generator))
        digits = torch.randint(1, 10, (length,), generator=generator).tolist()
        tail = torch.randint(0, 10, (DIGITS,), generator=generator).tolist()
        line = [*digits, *([0, *tail] if length < DIGITS else [])][:DIGITS]
        prompts.append([BOS, *line, SEP])
        answers.append(answer_of(prompts[-1]))
    return torch.tensor(prompts), torch.tensor(answers)


def answer_of(prompt: list[int]) -> list[int]:
    """The right answer to a prompt."""
    line = prompt[1 : 1 + DIGITS]
    digits = line[: line.index(0)] if 0 in line else line
    ordered = sorted(digits)
    whole = [*ordered, SEP, *reversed(ordered)]
    return [*whole, *[EOS] * (ANSWER - len(whole))]


def train(settings: Training, on_step: Callable[[int, float], None] | None = None) -> Decoder:
    """A trained model of 150,720 parameters, as a decoder in float32.

    Args:
        settings: of the run.
        on_step: called with the step and its loss.
    """
    clean = torch.cat(examples(settings.sequences, settings.seed), 1)

    def draw(generator: torch.Generator) -> Int[Tensor, "batch tokens"]:
        return clean[torch.randint(len(clean), (settings.batch,), generator=generator)]

    kind = Denoising("llada", MASK)
    return fit(new_denoiser(kind, SHAPE, settings.seed), kind, settings, draw, ANSWER, on_step)


def fit(
    network: nn.Module,
    kind: Denoising,
    settings: Training,
    draw: Callable[[torch.Generator], Int[Tensor, "batch tokens"]],
    answer: int,
    on_step: Callable[[int, float], None] | None = None,
    *,
    counted: bool = False,
) -> Decoder:
    """Train a network on a small task, masking answers alone, and share it as a decoder in float32.

    Args:
        network, kind: what is trained.
        settings: of the run.
        draw: the rows of a step, prompts and answers.
        answer: tokens of an answer.
        on_step: called with the step and its loss.
        counted: draw numbers of masks instead of rates, which is less noisy.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.peak, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(settings.seed)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step)
        ids = draw(generator)
        rows, tokens = ids.shape
        answers = (torch.arange(tokens) >= tokens - answer).expand(rows, -1)
        if counted:
            masked, rate = counted_masks(answers, generator)
        else:
            rate = rates(rows, generator)
            masked = masks(answers, rate, generator)
        logits = denoiser_logits(network, torch.where(masked, kind.mask, ids), kind.visible(tokens))
        loss = masked_loss(logits, ids, masked, rate, answers)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if on_step is not None:
            on_step(step, float(loss.detach()))
    decoder = share_decoder(cast("PreTrainedModel", network.eval().requires_grad_(False)))
    decoder.config = replace(decoder.config, diffusion=DiffusionSpec(mask=kind.mask))
    return decoder

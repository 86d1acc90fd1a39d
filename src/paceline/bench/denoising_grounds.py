"""Where ways of denoising are compared: a model, prompts, an answer length, and what a right answer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from paceline.bench.sort_reverse import ANSWER, EOS, Training, examples, train
from paceline.core.errors import UsageError
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.zoo.corpus import Split
from paceline.zoo.tasks import problems

TOY_BLOCK, TEXT_BLOCK = 8, 32
TOYS = {"weak": 520, "good": 900}  # training steps


@dataclass(frozen=True, slots=True)
class Ground:
    """A comparison's surroundings.

    Args:
        name: of the model.
        model: its weights.
        prompts: as ids.
        length: tokens of every answer.
        block: positions per block.
        ends: ids behind which an answer says nothing more.
        right: whether the answer to a prompt, given by its index, is right.
    """

    name: str
    model: LLM
    prompts: list[list[int]]
    length: int
    block: int
    ends: frozenset[int]
    right: Callable[[int, Sequence[int]], bool]

    @property
    def causal(self) -> bool:
        """Whether blocks are the model's own, and see nothing behind them."""
        spec = self.model.runner.decoder.config.diffusion
        return spec is not None and spec.block is not None

    def method(self, text: str) -> str:
        """A method string with the block of the ground put into it; block-causal models have their own."""
        if self.causal:
            return text
        name, _, options = text.partition(":")
        return f"{name}:{','.join(filter(None, [f'block={self.block}', options]))}"

    def said(self, tokens: Sequence[int]) -> int:
        """Tokens of an answer up to its end, which counts."""
        for index, token in enumerate(tokens):
            if token in self.ends:
                return index + 1
        return len(tokens)


def toy(name: str, count: int, seed: int = 0, double: bool = False) -> Ground:
    """Sort and reverse, by a model trained on the spot.

    Args:
        name: one of `TOYS`.
        count: prompts.
        seed: of weights and data; prompts come from the next one.
        double: run it in float64, where forwards of different sizes agree.
    """
    decoder = train(Training(steps=TOYS[name], seed=seed))
    if double:
        decoder = decoder.to(torch.float64)
    model = load(decoder, "static", device="cpu", kv_tokens=256, pack=False)
    asked, answers = (table.tolist() for table in examples(count, seed + 1))
    return Ground(name, model, asked, ANSWER, TOY_BLOCK, frozenset({EOS}), lambda index, tokens: list(tokens) == answers[index])


def text(checkpoint: str, count: int, length: int = 64, seed: int = 0, device: str | None = None, dtype: str | None = None) -> Ground:
    """Held-out problems with checkable answers, by a diffusion model of text.

    Args:
        checkpoint: name, folder or Hub id.
        count: prompts.
        length: tokens of every answer.
        seed: of the problems.
        device, dtype: see `paceline.load`.

    Raises:
        UsageError: for an autoregressive model, or one without a tokenizer.
    """
    model = load(checkpoint, "auto", device=device, dtype=dtype, kv_tokens=256)
    tokenizer = model.tokenizer
    if tokenizer is None or not model.denoises:
        raise UsageError(f"{checkpoint}: a masked diffusion model with a tokenizer is needed here")
    asked = list(problems(count, Split.HELD_OUT, seed))

    def right(index: int, tokens: Sequence[int]) -> bool:
        return asked[index].solved_by(tokenizer.decode(list(tokens)))

    prompts = [tokenizer.encode(problem.prompt) for problem in asked]
    config = model.runner.decoder.config
    own = None if config.diffusion is None else config.diffusion.block
    return Ground(model.name, model, prompts, length, own or TEXT_BLOCK, frozenset(config.eos), right)

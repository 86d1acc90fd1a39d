"""What an answer is worth: its distance to another one, whether code parses, and how likely an autoregressive model finds it."""

from __future__ import annotations

import ast
import warnings
from codeop import compile_command
from collections.abc import Sequence
from math import log

import torch

from paceline.bench.audit.margins import PlainPath
from paceline.core.errors import UsageError
from paceline.engine.llm import LLM

UNREADABLE = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)  # what compiling arbitrary text may raise


def edit_distance(mine: Sequence[int], other: Sequence[int]) -> float:
    """Insertions, deletions and substitutions that turn one answer into the other, over the length of the longer one; 0 to 1."""
    before = list(range(len(other) + 1))
    for row, token in enumerate(mine, 1):
        now = [row]
        for column, wanted in enumerate(other, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (token != wanted)))
        before = now
    return before[-1] / max(1, len(mine), len(other))


def parses(code: str) -> bool:
    """Whether `ast.parse` reads the code, or would if it went on: what a limit on tokens cut off is not held against it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and comparisons by `is` are no errors
        try:
            ast.parse(code)
        except UNREADABLE:
            try:
                return compile_command(code, symbol="exec") is None
            except UNREADABLE:
                return False
    return True


def continues(prompt: str, answer: str, *, ended: bool) -> bool:
    """Whether an answer goes on with code that parses.

    Args:
        prompt: begins and stays on a path that valid code can take.
        answer: its last line is left out unless it `ended` by itself; at least one line with something in it must remain.
        ended: whether it ended by itself, not at a limit.
    """
    whole = answer if ended else answer[: answer.rfind("\n") + 1]
    return bool(whole.strip()) and parses(prompt + whole)


class Judge:
    """An autoregressive model that says how likely it finds text.

    Args:
        llm: with a tokenizer of its own, which need not be that of who wrote the text.

    Raises:
        UsageError: for a diffusion model, or one without a tokenizer.
    """

    def __init__(self, llm: LLM) -> None:
        if llm.denoises or llm.tokenizer is None:
            raise UsageError(f"{llm.name} cannot judge text: an autoregressive model with a tokenizer is needed, such as pocket-code")
        self.tokenizer, self.context = llm.tokenizer, llm.engine.context
        self._path = PlainPath(llm.runner.decoder)

    def bits_per_byte(self, prompt: str, answer: str) -> float | None:
        """Code length of an answer behind its prompt, over its size in UTF-8; `None` for an empty one.

        Args:
            prompt: its beginning is left out where both together are longer than the model's context.
            answer: its own end is left out if it is too long alone.
        """
        said = self.tokenizer.encode(answer)[: self.context - 1]
        if not said:
            return None
        given = self.tokenizer.encode(prompt)[-(self.context - len(said)) :]
        logits = self._path.all_logits([*given, *said][:-1])[-len(said) :]
        nats = -logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None]).sum()
        return float(nats) / log(2) / len(self.tokenizer.decode(said).encode())

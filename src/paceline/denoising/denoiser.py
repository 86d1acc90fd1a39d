"""A decoder of masked diffusion models: a forward policy, a way to read logits, a commit rule and a stop rule over a canvas.

The four are separate objects so that every cache combines with every commit rule. The engine asks for looks, runs them in one forward with
those of other answers, and hands the logits back.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import MemoryView
from paceline.core.errors import UsageError
from paceline.core.request import FinishReason, Request
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas, Ints
from paceline.denoising.ending import Cut
from paceline.denoising.guesses import Guesses
from paceline.denoising.policies import ForwardPolicy, Look
from paceline.denoising.reading import Question, Reading, read
from paceline.denoising.rules import CommitRule
from paceline.models.config import DiffusionSpec

WHOLE = 0  # block size that stands for "one block for the whole answer"


@dataclass(frozen=True, slots=True)
class StopRule:
    """What happens once a decided block holds the end of the output.

    Args:
        early: fill the rest of the canvas with the end-of-text id and stop. Off, the rest is decoded although nothing of it is output, as
            reference implementations do. The output is the same.
        cut: shorten the canvas as soon as the end of the output is known, in the middle of a block too. The output may change.
    """

    early: bool = True
    cut: Cut | None = None

    @property
    def everywhere(self) -> bool:
        """Whether guesses are wanted behind the block as well."""
        return self.cut is not None and self.cut.foresight

    def ends(self, reason: FinishReason | None) -> bool:
        """Whether to stop now, given why the output has ended (`None` if it has not)."""
        return self.early and reason is not None


class Hooks(Protocol):
    """What may look over a decoder's shoulder (Dream's generation hooks); for recorders, constraints and pictures."""

    def tokens(self, step: int | None, canvas: Canvas) -> None:
        """Called before the first forward of an answer with `None`, and behind every one that decides with its number from 0."""

    def logits(self, step: int, canvas: Canvas, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Called with the logits of the positions that were asked about (the open ones of the block, or all of it where the rule wants
        them), one row each; what it returns is read instead."""


@dataclass(frozen=True, slots=True)
class Task:
    """One canvas of a forward, with its looks.

    Args:
        canvas: the answer.
        looks: for the canvas's memories in order, the last of which may be left out: the prompt as it is, then (with guidance) the prompt
            masked.
        sampling: of the request.
        asked: positions whose logits the forward computes, the same in every look; empty where it only stores keys and values.
    """

    canvas: Canvas
    looks: tuple[Look, ...]
    sampling: Sampling
    asked: Ints

    @property
    def rows(self) -> int:
        """Rows of the forward."""
        return sum(len(look.positions) for look in self.looks)


@dataclass(frozen=True, slots=True)
class Denoiser:
    """How answers are decoded.

    Args:
        spec: of the model.
        policy: which rows are computed.
        rule: which positions are decided.
        reading: how logits are read.
        stop: when to end.
        block: positions per block; `WHOLE` takes the answer as one.
        guidance: classifier-free guidance; above 0 the logits are those without the prompt plus `guidance + 1` times the difference that
            the prompt makes (LLaDA, `cfg_scale`).
        steps: forwards for the whole answer, where a schedule shares a fixed number among blocks; 0 otherwise.
        hooks: called at every step.
    """

    spec: DiffusionSpec
    policy: ForwardPolicy
    rule: CommitRule
    reading: Reading
    stop: StopRule = field(default_factory=StopRule)
    block: int = 32
    guidance: float = 0.0
    steps: int = 0
    hooks: Hooks | None = None

    @property
    def views(self) -> int:
        """Memories per canvas."""
        return 2 if self.guidance else 1

    def start(self, request: Request, seed: int, context: int) -> Canvas:
        """The canvas of a request, as long as its `max_tokens` or as the context allows.

        Raises:
            UsageError: where a fixed number of steps cannot be shared evenly, naming the options.
        """
        wanted = min(request.max_tokens, context - len(request.ids))
        aligned = self.spec.block is not None
        canvas = Canvas.start(request.ids, wanted, block=self.block or wanted, mask=self.spec.mask, seed=seed, aligned=aligned)
        if canvas.length > context:
            most = context // canvas.block * canvas.block - len(request.ids)
            raise UsageError(
                f"max_tokens={request.max_tokens} fills whole blocks of {canvas.block} up to position {canvas.length}, beyond the context "
                f"of {context}; " + (f"use at most {most}" if most > 0 else "shorten the prompt")
            )
        if self.steps % canvas.blocks:
            raise UsageError(
                f"steps={self.steps} cannot be shared evenly by the {canvas.blocks} blocks of {canvas.block} that {wanted} tokens take; "
                "use a multiple of the number of blocks, or per_step"
            )
        if self.hooks is not None:
            self.hooks.tokens(None, canvas)
        return canvas

    def task(self, canvas: Canvas, views: Many[MemoryView], sampling: Sampling, room: int) -> Task:
        """What the next forward computes for a canvas.

        Args:
            views: its memories.
            room: rows that a prefill should stay within.
        """
        looks = tuple(self.policy.look(canvas, view, room) for view in views)
        asked = np.arange(canvas.low, canvas.high) if self.rule.scope == "block" else canvas.open_in_block()
        if self.stop.everywhere:
            asked = np.concatenate([asked, np.arange(canvas.high, canvas.length)])
        for look in looks:  # one of two memories may still have prompt to read
            asked = asked[np.isin(asked - int(self.spec.shifted), np.asarray(look.positions))]
        return Task(canvas, looks, sampling, asked)

    def ids(self, task: Task, look: int) -> list[int]:
        """Input ids of the rows of one look; without the prompt in the second."""
        positions = np.asarray(task.looks[look].positions)
        ids = task.canvas.ids[positions]
        if look:
            ids = np.where(positions < task.canvas.prompt, task.canvas.mask, ids)
        return [int(token) for token in ids]

    def logit_rows(self, task: Task, look: int) -> list[int]:
        """Rows of a look whose logits predict the asked positions."""
        predictors = task.asked - int(self.spec.shifted)
        return [int(row) for row in np.searchsorted(np.asarray(task.looks[look].positions), predictors)]

    def absorb(self, tasks: Many[Task], logits: Float[Tensor, "rows vocabulary"]) -> None:
        """Decide positions of every canvas and go on to its next block where one is decided.

        Args:
            logits: of every task's looks in order, one row per asked position and look.
        """
        asking = [task for task in tasks if len(task.asked)]
        for task in tasks:
            task.canvas.forwards += 1
        if not asking:
            return
        questions = [self._question(task) for task in asking]
        if self.guidance:
            logits = self._guided(asking, logits)
        if self.hooks is not None:
            logits = self._hooked(self.hooks, asking, logits)
        for task, guesses in zip(asking, read(logits, questions, self.reading, self.rule.entropy), strict=True):
            self.decide(task.canvas, guesses)
            if self.hooks is not None:
                self.hooks.tokens(task.canvas.steps - 1, task.canvas)
            self.leave(task.canvas)

    def decide(self, canvas: Canvas, guesses: Guesses) -> None:
        """One step of a canvas: commit what the rule chooses."""
        inside = guesses.before(canvas.high) if self.stop.everywhere else guesses
        chosen = self.rule.choose(inside, canvas) | (inside.open & np.isposinf(inside.score))
        canvas.commit(inside.positions[chosen], inside.tokens[chosen])
        if self.stop.cut is not None:
            behind = np.zeros(len(guesses.positions) - len(chosen), dtype=bool)
            self.stop.cut.apply(canvas, guesses, np.concatenate([chosen, behind]))
        canvas.step += 1
        canvas.steps += 1

    def leave(self, canvas: Canvas) -> None:
        """Go on to the next block where this one is decided, or its steps are used up."""
        if not len(canvas.open_in_block()) or self.rule.over(canvas):
            canvas.advance()
        if self.stop.cut is not None and canvas.finished:
            canvas.fill(self.stop.cut.eos[0])

    def _question(self, task: Task) -> Question:
        canvas, positions = task.canvas, task.asked
        certain = np.zeros(len(positions), dtype=bool)
        if self.spec.shifted and not self.policy.anew and canvas.step == 0:
            # Later forwards do not feed the position before the block, which is the one that predicts its first token (Fast-dLLM on Dream).
            certain = positions == canvas.low
        return Question(canvas, positions, canvas.open[positions], task.sampling, certain)

    def _hooked(self, hooks: Hooks, tasks: Many[Task], logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits as the hook wants them."""
        parts = torch.split(logits, [len(task.asked) for task in tasks])
        with torch.inference_mode():
            return torch.cat([hooks.logits(task.canvas.steps, task.canvas, part) for task, part in zip(tasks, parts, strict=True)])

    def _guided(self, tasks: Many[Task], logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """One row per asked position from those with and without the prompt."""
        parts, row = [], 0
        with torch.inference_mode():
            for task in tasks:
                count = len(task.asked)
                given, free = logits[row : row + count], logits[row + count : row + 2 * count]
                parts.append(free + (self.guidance + 1) * (given - free))
                row += 2 * count
            return torch.cat(parts)

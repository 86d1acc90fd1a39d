"""Draft and verify over any commit rule: one forward computes several drafted states of a canvas, and as many are kept as plain decoding
would have reached.

Behind every forward the canvas is a state of plain decoding, with its last step taken. What that forward said about the other open
positions is kept, and is the draft of the next one, so that a draft costs nothing but rows.

Source: FreeDave (arXiv 2510.00294).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import MemoryView
from paceline.core.request import Request
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas
from paceline.denoising.denoiser import Denoiser, Task
from paceline.denoising.freedave_branches import batched, joined, scratch_of
from paceline.denoising.freedave_chain import Match, chain, walk, within
from paceline.denoising.guesses import Guesses
from paceline.denoising.reading import read
from paceline.denoising.sparsed import Sparse

Mode = Literal["batch", "tree", "sequential"]


@dataclass(frozen=True, slots=True)
class DraftTask(Task):
    """One canvas of a forward with the states it computes.

    Args:
        states: all that are to be verified; the first is the canvas.
        first: index of the first one in this forward.
        count: states in this forward.
    """

    states: tuple[Canvas, ...] = ()
    first: int = 0
    count: int = 1

    @property
    def fed(self) -> tuple[Canvas, ...]:
        """The states in this forward."""
        return self.states[self.first : self.first + self.count]


@dataclass(frozen=True, slots=True)
class Memo:
    """What is remembered of an answer between forwards.

    Args:
        guesses: what the last verified forward said, of which drafts are made.
        found: with one forward per state, what those so far said.
    """

    guesses: Guesses | None = None
    found: tuple[Guesses, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftAndVerify(Denoiser):
    """A denoiser that verifies several of its own steps per forward.

    The policy's rows must be a pure function of a block's tokens and of what was frozen when the block began; then, with exact matches,
    the output is that of the rule alone, and no answer takes more forwards (one more per draft in mode `sequential`).

    Args:
        drafts: states per forward; 1 is the rule alone.
        mode: a segment per state (`batch`), all states as masked rows of one (`tree`), or a forward per state (`sequential`).
        match: when a drafted state is kept.
        ahead: blocks behind the current one that drafts may reach into.
    """

    drafts: int = 4
    mode: Mode = "batch"
    match: Match = "exact"
    ahead: int = field(default=0)

    def start(self, request: Request, seed: int, context: int) -> Canvas:
        canvas = Denoiser.start(self, request, seed, context)
        if self.mode != "sequential" and self.drafts > 1:
            canvas.scratch = (self.drafts - 1) * scratch_of(self.policy, canvas)
        return canvas

    def task(self, canvas: Canvas, views: Many[MemoryView], sampling: Sampling, room: int) -> DraftTask:
        plain = Denoiser.task(self, canvas, views, sampling, room)
        asked = plain.asked
        if len(asked) and self.ahead:
            further = np.arange(canvas.high, min(canvas.high + self.ahead * canvas.block, canvas.length))
            asked = np.concatenate([asked, further])
        memo = canvas.memo or Memo()
        states = chain(canvas, memo.guesses, self._reach(canvas), self.transition) if len(asked) else (canvas,)
        if self.mode == "sequential":
            return DraftTask(canvas, plain.looks, sampling, asked, states, len(memo.found))
        if self.mode == "tree":
            looks = tuple(joined(look, canvas, len(states)) for look in plain.looks)
        else:  # state by state, so that the canvas's own looks come first and the two of a state, with guidance, together
            branches = [batched(look, canvas, len(states)) for look in plain.looks]
            looks = tuple(look for state in zip(*branches, strict=True) for look in state)
        return DraftTask(canvas, looks, sampling, asked, states, 0, len(states))

    def ids(self, task: Task, look: int) -> list[int]:
        ids: list[int] = []
        for state, (low, high) in zip(self._states(task, look), self._stretches(task, look), strict=True):
            positions = np.asarray(task.looks[look].positions[low:high])
            found = state.ids[positions]
            if look % self.views:  # without the prompt
                found = np.where(positions < state.prompt, state.mask, found)
            ids.extend(found.tolist())
        return ids

    def logit_rows(self, task: Task, look: int) -> list[int]:
        rows: list[int] = []
        predictors = task.asked - int(self.spec.shifted)
        if not len(predictors):
            return rows
        for low, high in self._stretches(task, look):
            rows.extend((low + np.searchsorted(np.asarray(task.looks[look].positions[low:high]), predictors)).tolist())
        return rows

    def absorb(self, tasks: Many[Task], logits: Float[Tensor, "rows vocabulary"]) -> None:
        for task in tasks:
            task.canvas.forwards += 1
        asking = [task for task in tasks if isinstance(task, DraftTask) and len(task.asked)]
        if not asking:
            return
        read_for = [replace(task, canvas=state) for task in asking for state in task.fed]
        if self.guidance:
            logits = self._guided(list(read_for), self._by_state(asking, logits))
        if self.hooks is not None:
            logits = self._hooked(self.hooks, list(read_for), logits)
        answers = iter(read(logits, [self._question(task) for task in read_for], self.reading, self.rule.entropy))
        for task in asking:
            memo = task.canvas.memo or Memo()
            found = (*memo.found, *(next(answers) for _ in range(task.count)))
            if len(found) < len(task.states):
                task.canvas.memo = replace(memo, found=found)
            else:
                self._verify(task, found)

    def transition(self, canvas: Canvas, guesses: Guesses) -> None:
        """One step of plain decoding."""
        self.decide(canvas, guesses)
        self.leave(canvas)

    def accepted(self, states: Many[Canvas], found: Many[Guesses]) -> list[int]:
        """Indices of the states to go through, given what a forward says about each."""
        return walk(states, found, self.transition, self.match)

    def _reach(self, canvas: Canvas) -> int:
        """States that may share a forward: no draft goes beyond the step whose attention chooses what later steps attend to."""
        if not isinstance(self.policy, Sparse):
            return self.drafts
        before = self.policy.chooses(canvas) - canvas.steps
        return self.drafts if before < 0 else max(1, min(self.drafts, before))

    def _by_state(self, tasks: Many[DraftTask], logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits with the two looks of each state one after the other, as they are but where all states share a look."""
        if self.mode != "tree":
            return logits
        parts = torch.split(logits, [self.views * task.count * len(task.asked) for task in tasks])
        shapes = [(self.views, task.count, len(task.asked), -1) for task in tasks]
        with torch.inference_mode():
            return torch.cat([part.view(shape).transpose(0, 1).flatten(0, 2) for part, shape in zip(parts, shapes, strict=True)])

    def _states(self, task: Task, look: int) -> tuple[Canvas, ...]:
        """States whose rows a look holds."""
        assert isinstance(task, DraftTask)
        shared = len(task.looks) == self.views
        return task.fed if shared else task.fed[look // self.views :][:1]

    def _stretches(self, task: Task, look: int) -> list[tuple[int, int]]:
        """Rows of each state of a look; only the first one's may begin with rows that are stored."""
        here = task.looks[look]
        states, rows = len(self._states(task, look)), len(here.positions)
        width = (rows - here.keep) // states
        edges = [0, *(here.keep + width * (index + 1) for index in range(states))]
        return list(pairwise(edges))

    def _verify(self, task: DraftTask, found: Many[Guesses]) -> None:
        """Go along the drafted states as far as they agree, then take the step that follows from the last one."""
        canvas = task.canvas
        path = self.accepted(task.states, found)
        for before, after in pairwise(path):
            _follow(canvas, task.states[before], task.states[after])
            self._shown(canvas)
            _enter(canvas, task.states[after])
        last = found[path[-1]]
        self.decide(canvas, within(last, canvas))
        self._shown(canvas)
        self.leave(canvas)
        canvas.memo = Memo(last)

    def _shown(self, canvas: Canvas) -> None:
        if self.hooks is not None:
            self.hooks.tokens(canvas.steps - 1, canvas)


def _follow(canvas: Canvas, before: Canvas, after: Canvas) -> None:
    """Take the step on a canvas that leads from one state to another."""
    gained = np.flatnonzero(before.open & ~after.open)
    canvas.commit(gained, after.ids[gained])
    canvas.steps = after.steps


def _enter(canvas: Canvas, state: Canvas) -> None:
    """Go on to the block and the step of a state."""
    while canvas.low < state.low:
        canvas.advance()
    canvas.step, canvas.opened = state.step, state.opened

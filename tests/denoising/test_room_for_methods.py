"""The contracts hold methods of other pages: delayed caches are a policy, LocalLeap a rule, draft-and-verify a denoiser of several looks.

Minimal forms, written here against the published closed forms and identities, so that a change of a contract that shuts them out is seen.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from diffusion_models import Make
from torch import Tensor

from paceline.core.batch import MemoryView, Segment
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.denoiser import Denoiser, Task
from paceline.denoising.guesses import Guesses
from paceline.denoising.policies import Look
from paceline.denoising.reading import read
from paceline.denoising.rules import Threshold
from paceline.engine.llm import LLM

PROMPTS = [list(range(3, 13)), [4, 9], [30, 31, 32, 5, 6]]


def ids(llm: LLM, length: int = 24) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(PROMPTS, max_tokens=length, ignore_eos=True)]


@dataclass(frozen=True, slots=True)
class Delayed:
    """dKV-Cache, Decode (arXiv 2505.15781): what was decided before the last step is not fed; everything is, every `refresh` steps."""

    refresh: int
    anew: bool = False

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        whole = canvas.step < 2 or canvas.step % self.refresh == 0
        late = canvas.decided == canvas.forwards
        fed = list(range(canvas.length)) if whole else np.flatnonzero(canvas.open | late).tolist()
        return Look(view, fed, Segment(view, len(fed), offsets=fed, canvas=canvas.length))


@pytest.mark.parametrize(("refresh", "rows"), [(1, 816), (2, 618), (4, 492), (8, 429)])
def test_delayed_caches_feed_as_many_rows_as_published(make: Make, refresh: int, rows: int) -> None:
    llm, plain = make("llada", "static:block=8"), make("llada", "static:block=8")
    llm.engine.denoiser = replace(llm.engine.denoiser, policy=Delayed(refresh))
    outputs = llm.generate(PROMPTS, max_tokens=24, ignore_eos=True)
    assert outputs[0].stats.rows == rows
    assert ([output.token_ids for output in outputs] == ids(plain)) is (refresh == 1)


@dataclass(frozen=True, slots=True)
class Leap(Threshold):
    """LocalLeap (arXiv 2510.07081): a lower threshold within `radius` positions of those that pass the strict one."""

    relaxed: float = 0.2
    radius: int = 4

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        strict = Threshold.choose(self, guesses, canvas)
        anchors = guesses.positions[guesses.open & (np.exp(guesses.logprob) >= self.threshold)]
        near = np.abs(guesses.positions[:, None] - anchors[None, :]).min(-1, initial=1 << 30) <= self.radius
        chosen: Flags = strict | (guesses.open & near & (np.exp(guesses.logprob) >= self.relaxed))
        return chosen


def test_local_leaps_are_a_rule(make: Make) -> None:
    plain = make("llada", "threshold:block=8,threshold=0.4")

    def leaping(**options: float) -> LLM:
        llm = make("llada", "threshold:block=8,threshold=0.4")
        rule = Leap(threshold=0.4, **options)  # type: ignore[arg-type]
        llm.engine.denoiser = replace(llm.engine.denoiser, rule=rule)
        return llm

    assert ids(leaping(radius=0)) == ids(leaping(relaxed=0.4)) == ids(plain)
    runs = [llm.generate(PROMPTS, max_tokens=24, ignore_eos=True) for llm in (leaping(relaxed=0.1), plain)]
    assert sum(output.stats.forwards for output in runs[0]) < sum(output.stats.forwards for output in runs[1])


@dataclass(frozen=True, slots=True)
class Verified(Denoiser):
    """FreeDave without a cache (arXiv 2510.00294): `views` states of a canvas per forward, the k-th with the k surest guesses filled in."""

    drafts: int = 3

    @property
    def views(self) -> int:
        return self.drafts

    def task(self, canvas: Canvas, views: Many[MemoryView], sampling: object, room: int) -> Task:
        known = canvas.memo if canvas.step else None
        branches = 1 if known is None else min(self.drafts, len(canvas.open_in_block()))
        return Denoiser.task(self, canvas, list(views)[:branches], sampling, room)  # type: ignore[arg-type]

    def ids(self, task: Task, look: int) -> list[int]:
        filled = Denoiser.ids(self, task, 0)
        known = task.canvas.memo if task.canvas.step else None
        for at in [] if known is None else known.ranked()[: look + 1]:
            filled[int(known.positions[at])] = int(known.tokens[at])
        return filled

    def absorb(self, tasks: Many[Task], logits: Tensor) -> None:
        row = 0
        for task in tasks:
            canvas, count = task.canvas, len(task.asked)
            canvas.forwards += 1
            known, states = canvas.memo if canvas.step else None, []
            for index in range(len(task.looks)):
                question = self._question(task)
                (guesses,) = read(logits[row : row + count].clone(), [question], self.reading)
                drafted = [] if known is None else known.positions[known.ranked()[: index + 1]]
                states.append(replace(guesses, open=guesses.open & ~np.isin(guesses.positions, drafted)))
                row += count
            canvas.step += 1
            canvas.memo = states[0]
            if known is None:
                continue
            best, order = 0, known.ranked()
            while best + 1 < len(states):
                target = states[best].ranked()[0]  # what static decoding does next
                draft = order[best + 1]
                if known.positions[draft] != states[best].positions[target] or known.tokens[draft] != states[best].tokens[target]:
                    break
                best += 1
            canvas.commit(known.positions[order[: best + 1]], known.tokens[order[: best + 1]])
            canvas.memo = states[best]
            if not len(canvas.open_in_block()):
                canvas.advance()


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_drafts_and_their_verification_share_a_forward(make: Make, drafts: int) -> None:
    """Tokens of static decoding, and never more forwards than it takes."""
    plain, llm = make("llada", "static:block=8"), make("llada", "static:block=8", kv_tokens=4096)
    own = {entry.name: getattr(llm.engine.denoiser, entry.name) for entry in fields(Denoiser)}
    llm.engine.denoiser = Verified(**own, drafts=drafts)
    llm.engine.scheduler.views = drafts
    expected = plain.generate(PROMPTS, max_tokens=24, ignore_eos=True)
    found = llm.generate(PROMPTS, max_tokens=24, ignore_eos=True)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    if drafts > 1:
        assert sum(output.stats.forwards for output in found) < sum(output.stats.forwards for output in expected)

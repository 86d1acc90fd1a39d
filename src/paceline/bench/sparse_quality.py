"""What sparse attention changes on tasks with right answers, how much attention it keeps, and how much of the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.bench import needles, sort_reverse
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.sort_reverse import Training
from paceline.core.batch import MemoryView, SegmentAttention
from paceline.denoising.canvas import Canvas
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.sparsed import Following, Sparse
from paceline.engine.llm import LLM
from paceline.engine.load import load

MODELS = {"weak": 520, "good": 900, "needles": needles.STEPS}  # training steps
WATCHED = 8  # prompts whose attention is measured
LATE = 0.2  # share of steps, from the end, in which kept attention is measured
KEPT = (0.3, 0.5)
PATTERNS = (
    *(f"sparse_keep={keep},sparse_skip={skip}" for keep in KEPT for skip in (0.2, 0.0)),
    *(f"sparse_keep={keep},sparse_select={select}" for keep in KEPT for select in ("plain", "reference", "window", "sinks")),
    "sparse_keep=1",
    "sparse_keep=0.3,sparse_skip=1",
)
BLIND = ("window", "sinks")  # selections that look at no attention


@dataclass(slots=True, eq=False)
class Kept:
    """Shares of attention weight on kept blocks, a list per measurement with one entry per head: of all, and of that on the answer."""

    all: list[Float[Tensor, " heads"]] = field(default_factory=list)
    answer: list[Float[Tensor, " heads"]] = field(default_factory=list)
    density: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Sparse attention that notes how much weight dense attention would have left on what is read."""

    inner: Following
    kept: Kept

    def __call__(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        prompt = self.inner.patterns.prompt
        weights = torch.einsum("ihd,jhd->hij", query, keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)).mul(scale).softmax(-1)
        out = self.inner(layer, query, keys, values, scale)
        pattern = self.inner.patterns.layers[layer]
        seen = weights * pattern.expanded()
        self.kept.all.append(seen.sum(-1).mean(-1))
        self.kept.answer.append(seen[..., prompt:].sum((1, 2)) / weights[..., prompt:].sum((1, 2)))
        self.kept.density.append(pattern.density)
        return out

    def pattern(self, layer: int, length: int) -> None:
        """None, for every forward is to be measured."""


@dataclass(frozen=True, slots=True)
class Measured(Sparse):
    """Sparse attention, measured in the last steps."""

    kept: Kept = field(default_factory=Kept)

    def attention(self, canvas: Canvas, view: MemoryView, positions: Sequence[int] | None = None) -> SegmentAttention | None:
        found = Sparse.attention(self, canvas, view, positions)
        late = canvas.steps >= (1 - LATE) * (canvas.length - canvas.prompt)
        return Measuring(found, self.kept) if late and isinstance(found, Following) else found


@dataclass(frozen=True, slots=True)
class Task:
    """What a trained model is asked.

    Args:
        name: of the model.
        model: with its weights.
        asked, answers: prompts, and what is right.
        block: tokens per block of the answer.
        tile: positions per block of a pattern.
    """

    name: str
    model: LLM
    asked: list[list[int]]
    answers: list[list[int]]
    block: int
    tile: int


def task_of(name: str, prompts: int, seed: int, context: int = 512) -> Task:
    """A model of `MODELS`, trained here, with its task: few positions for `weak` and `good`, many for `needles`.

    Args:
        name: of the model.
        prompts: how many.
        seed: of weights and data; prompts come from the next one.
        context: tokens of a prompt with needles.
    """
    settings = Training(steps=MODELS[name], seed=seed)
    if name == "needles":
        decoder = needles.train(settings)
        asked, answers = needles.examples(prompts, context, seed + 1)
        block, tile = needles.NEEDLES, 16
    else:
        decoder = sort_reverse.train(settings)
        asked, answers = sort_reverse.examples(prompts, seed + 1)
        block, tile = 8, 2
    model = load(decoder, "static", device="cpu", kv_tokens=256, pack=False)
    return Task(name, model, asked.tolist(), answers.tolist(), block, tile)


def quality_rows(task: Task, seed: int, patterns: Sequence[str] = PATTERNS) -> list[dict[str, Any]]:
    """Measure every pattern on a task; the first row is dense.

    Args:
        task: what is asked.
        seed: of the intervals.
        patterns: options of `attention=sparsed`.
    """
    length = len(task.answers[0])
    reference = run_method(task.model, f"static:block={task.block}", task.asked, length)
    found = [{"model": task.name, **row_of(reference, reference, task.answers, seed), "work": 1.0}]
    for options in patterns:
        kept = Kept()

        def measured(denoiser: Denoiser, kept: Kept = kept) -> Denoiser:
            policy = denoiser.policy
            assert isinstance(policy, Sparse)
            return replace(denoiser, policy=Measured(**_fields(policy), kept=kept))

        method = f"static:block={task.block},attention=sparsed,sparse_tile={task.tile},{options}"
        run_method(task.model, method, task.asked[:WATCHED], length, change=measured)
        run = run_method(task.model, method, task.asked, length)
        row = {"model": task.name, **row_of(run, reference, task.answers, seed), "work": work(task, method, run, kept)}
        if kept.all:
            layers = len(task.model.runner.decoder.config.layers)
            heads = torch.stack(kept.all).view(-1, layers, kept.all[0].shape[0]).mean(0)
            row |= {"kept": float(heads.mean()), "kept_least": float(heads.min()), "kept_answer": float(torch.stack(kept.answer).mean())}
        found.append(row)
    return found


def work(task: Task, method: str, run: Run, kept: Kept) -> float:
    """Multiplications of attention over an answer, as a share of dense attention's: full forwards count 1, sparse ones their density, and
    choosing computes all scores once more, which is half of it."""
    policy = load(task.model, method, device="cpu", kv_tokens=2).engine.denoiser.policy
    assert isinstance(policy, Sparse)
    canvas = Canvas.start(task.asked[0], len(task.answers[0]), block=task.block, mask=0)
    forwards = run.forwards[0]
    full = min(forwards, policy.chooses(canvas) + 1)
    if full == forwards and not kept.density:
        return 1.0
    scores = 0.0 if policy.select in BLIND else 0.5
    density = sum(kept.density) / len(kept.density) if kept.density else 1.0
    return (full + scores + (forwards - full) * density) / forwards


def _fields(policy: Sparse) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in Sparse.__dataclass_fields__}

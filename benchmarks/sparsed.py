"""SparseD: seconds of dense against sparse forwards at growing context, and what sparse patterns change on a model trained on the spot.

    python benchmarks/sparsed.py --json benchmarks/results      # both parts: about twenty minutes on one core
    python benchmarks/sparsed.py --quick                        # contexts up to 1,024, weak model, 30 prompts: two minutes

Part `speed` runs a two-layer model with random weights of the shape of `pocket-dlm`. Forwards are timed with weights as checkpoints store
them and packed as loading packs them, and the length from which sparse attention wins is judged by the faster of the two on either side.
`answer` is what a whole answer of 128 steps would gain: 20 % of its forwards are full, and the last of those chooses the patterns.

Part `quality` decodes the sort-and-reverse task (34 positions, pattern blocks of two) with models trained on the spot. Agreement is with
dense static decoding. `kept` is the share of attention weight that falls on kept blocks in the last fifth of the steps, as a mean and for
the worst head; `of the answer` is the share that is kept of the weight on keys of the answer. Expected: sparse patterns keep more than a
window or sinks of the same density, and isolated selection more of the answer than selection over all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from paceline.attention.sparse import block_sparse, kernel_for
from paceline.attention.sparse_pattern import choose_pattern
from paceline.bench import sort_reverse
from paceline.bench.denoising_rows import row_of, run_method
from paceline.bench.random_denoiser import random_denoiser
from paceline.bench.report import Column, Record, render_table
from paceline.bench.sort_reverse import Training
from paceline.core.batch import ForwardBatch, ForwardResult, MemoryView, SegmentAttention
from paceline.core.errors import PacelineError
from paceline.denoising.canvas import Canvas
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.sparsed import Following, Sparse, dense
from paceline.engine.llm import LLM
from paceline.engine.load import load

STEPS = 6  # forwards of every timed answer
ANSWER_STEPS, SKIP = 128, 0.2  # of the answer that `answer` stands for
LAYERS = 2
MODELS = {"weak": 520, "good": 900}
WATCHED = 8  # prompts whose attention is measured
LATE = 0.2  # share of steps, from the end, in which kept attention is measured
KEPT = (0.3, 0.5)
PATTERNS = (
    *(f"sparse_keep={keep},sparse_skip={skip}" for keep in KEPT for skip in (0.2, 0.0)),
    *(f"sparse_keep={keep},sparse_select={select}" for keep in KEPT for select in ("plain", "reference", "window", "sinks")),
    "sparse_keep=1",
    "sparse_keep=0.3,sparse_skip=1",
)


def speed_rows(lengths: Sequence[int], tile: int, keep: float, rounds: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Time forwards of both kinds in turn, and attention alone."""
    found = []
    for packed in (False, True):
        model = load(
            random_denoiser(max(lengths), layers=LAYERS, pack=packed, seed=seed), "static", device="cpu", kv_tokens=64, pack=packed
        )
        for length in lengths:
            with console.status(f"{length} positions, {'packed' if packed else 'plain'} weights"):
                row: dict[str, Any] = {
                    "positions": length,
                    "weights": "packed" if packed else "plain",
                    "tile": tile,
                    **_forwards(model, length, tile, keep, rounds),
                }
                row |= _attention(model, length, tile, keep, rounds, seed)
            full = int(ANSWER_STEPS * SKIP)
            whole = full * row["dense"] + row["choosing"] + (ANSWER_STEPS - full - 1) * row["sparse"]
            found.append(row | {"answer": ANSWER_STEPS * row["dense"] / whole})
    return found


def _forwards(model: LLM, length: int, tile: int, keep: float, rounds: int) -> dict[str, float]:
    """Median seconds of dense, choosing and sparse forwards over a whole canvas."""
    times: dict[str, list[float]] = {"dense": [], "choosing": [], "sparse": []}
    for _ in range(rounds):
        for kind, options in (("dense", ""), ("sparse", f",attention=sparsed,sparse_full=1,sparse_tile={tile},sparse_keep={keep}")):
            llm = load(model, f"static:block={STEPS}{options}", device="cpu", kv_tokens=length + 64, max_rows=1 << 20, prefix_cache=False)
            taken = _watched(llm)
            llm.generate([[token % 1000 for token in range(length - STEPS)]], max_tokens=STEPS, ignore_eos=True)
            times[kind].extend(taken[1:])  # the first forward touches fresh memory
            if kind == "sparse":
                times["choosing"].append(taken[0])
    return {kind: median(seconds) for kind, seconds in times.items()}


def _watched(llm: LLM) -> list[float]:
    """Seconds of every forward from now on."""
    taken: list[float] = []
    plain = llm.runner.forward

    def timed(batch: ForwardBatch) -> ForwardResult:
        start = perf_counter()
        result = plain(batch)
        taken.append(perf_counter() - start)
        return result

    llm.runner.forward = timed  # type: ignore[method-assign]
    return taken


def _attention(model: LLM, length: int, tile: int, keep: float, rounds: int, seed: int) -> dict[str, float]:
    """Median seconds of one layer's attention, dense and sparse, on random vectors of the model's shape."""
    mixer = model.runner.decoder.config.layers[0].mixer
    generator = torch.Generator().manual_seed(seed)
    query, keys, values = (
        torch.randn(length, heads, mixer.head_dim, generator=generator) for heads in (mixer.heads, mixer.kv_heads, mixer.kv_heads)
    )
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    with torch.inference_mode():
        pattern = choose_pattern(query, keys, length - STEPS, tile=tile, keep=keep, scale=mixer.scale)
        for number in range(rounds + 1):
            for kind in times:
                start = perf_counter()
                _ = dense(query, keys, values, mixer.scale) if kind == "dense" else block_sparse(query, keys, values, pattern, mixer.scale)
                if number:
                    times[kind].append(perf_counter() - start)
    return {
        "attention": median(times["dense"]) / median(times["sparse"]),
        "density": pattern.density,
        "pattern_bytes": float(pattern.bytes),
    }


def wins_from(rows: Sequence[Mapping[str, Any]], sparse: str) -> int | None:
    """The shortest length from which the fastest sparse run beats the fastest dense one at every length measured.

    Args:
        sparse: field with seconds of the sparse side.
    """
    start = None
    for length in sorted({row["positions"] for row in rows}):
        here = [row for row in rows if row["positions"] == length]
        won = min(row[sparse] for row in here) < min(row["dense"] for row in here)
        start = (start or length) if won else None
    return start


@dataclass(slots=True, eq=False)
class Kept:
    """Shares of attention weight on kept blocks, a list per measurement with one entry per head: of all, and of that on the answer."""

    all: list[Float[Tensor, " heads"]] = field(default_factory=list)
    answer: list[Float[Tensor, " heads"]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Sparse attention that notes how much weight dense attention would have left on what is read."""

    inner: Following
    kept: Kept

    def __call__(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        prompt = self.inner.patterns.prompt
        weights = torch.einsum("ihd,jhd->hij", query, keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)).mul(scale).softmax(-1)
        out = self.inner(layer, query, keys, values, scale)
        seen = weights * self.inner.patterns.layers[layer].expanded()
        self.kept.all.append(seen.sum(-1).mean(-1))
        self.kept.answer.append(seen[..., prompt:].sum((1, 2)) / weights[..., prompt:].sum((1, 2)))
        return out


@dataclass(frozen=True, slots=True)
class Measured(Sparse):
    """Sparse attention, measured in the last steps."""

    kept: Kept = field(default_factory=Kept)

    def attention(self, canvas: Canvas, view: MemoryView) -> SegmentAttention | None:
        found = Sparse.attention(self, canvas, view)
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


def sorting(name: str, prompts: int, seed: int) -> Task:
    """The calibration task: few positions."""
    model = load(sort_reverse.train(Training(steps=MODELS[name], seed=seed)), "static", device="cpu", kv_tokens=256, pack=False)
    asked, answers = sort_reverse.examples(prompts, seed + 1)
    return Task(name, model, asked.tolist(), answers.tolist(), block=8, tile=2)


def quality_rows(task: Task, seed: int) -> list[dict[str, Any]]:
    """Measure every pattern on a task; the first row is dense."""
    length = len(task.answers[0])
    reference = run_method(task.model, f"static:block={task.block}", task.asked, length)
    found = [{"model": task.name, **row_of(reference, reference, task.answers, seed)}]
    for options in PATTERNS:
        kept = Kept()

        def measured(denoiser: Denoiser, kept: Kept = kept) -> Denoiser:
            policy = denoiser.policy
            assert isinstance(policy, Sparse)
            own = Measured(policy.inner, policy.tile, policy.keep, policy.skip, policy.full, policy.select, policy.schedule, kept)
            return replace(denoiser, policy=own)

        method = f"static:block={task.block},attention=sparsed,sparse_tile={task.tile},{options}"
        run_method(task.model, method, task.asked[:WATCHED], length, change=measured)
        row = {"model": task.name, **row_of(run_method(task.model, method, task.asked, length), reference, task.answers, seed)}
        if kept.all:
            layers = len(task.model.runner.decoder.config.layers)
            heads = torch.stack(kept.all).view(-1, layers, kept.all[0].shape[0]).mean(0)
            row |= {"kept": float(heads.mean()), "kept_least": float(heads.min()), "kept_answer": float(torch.stack(kept.answer).mean())}
        found.append(row)
    return found


def _spread(name: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, text)


def _milliseconds(name: str) -> Column:
    return Column(f"{name}, ms", lambda row: f"{1000 * row[name]:.1f}")


SPEED = [
    Column("positions", "positions"),
    Column("weights", "weights", numeric=False),
    Column("density", lambda row: f"{row['density']:.2f}"),
    *(_milliseconds(name) for name in ("dense", "choosing", "sparse")),
    Column("forward", lambda row: f"{row['dense'] / row['sparse']:.2f}x"),
    Column("attention alone", lambda row: f"{row['attention']:.2f}x"),
    Column("answer", lambda row: f"{row['answer']:.2f}x"),
    Column("patterns, kB per layer", lambda row: f"{row['pattern_bytes'] / 1000:.0f}"),
]
QUALITY = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    *(_spread(name) for name in ("exact", "identical", "agree")),
    Column("kept", lambda row: f"{row['kept']:.3f}" if "kept" in row else ""),
    Column("worst head", lambda row: f"{row['kept_least']:.3f}" if "kept" in row else ""),
    Column("of the answer", lambda row: f"{row['kept_answer']:.3f}" if "kept" in row else ""),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
]


def main(
    part: Annotated[str, typer.Option(help="quality, speed, or both")] = "both",
    lengths: Annotated[str, typer.Option(help="canvases of the speed part, in positions")] = "256,512,1024,2048,4096,8192",
    tile: Annotated[int, typer.Option(help="positions per block in the speed part")] = 128,
    keep: Annotated[float, typer.Option(help="share of blocks kept in the speed part")] = 0.3,
    rounds: Annotated[int, typer.Option(help="times that both kinds have their turn")] = 3,
    models: Annotated[str, typer.Option(help=f"which of {', '.join(MODELS)}, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="contexts up to 1,024, one round, weak model, 30 prompts")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    sizes = [256, 512, 1024] if quick else [int(length) for length in lengths.split(",")]
    names, count, turns = (["weak"], 30, 1) if quick else (models.split(","), prompts, rounds)
    try:
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        speed: list[dict[str, Any]] = []
        quality: list[dict[str, Any]] = []
        wins: dict[str, int | None] = {}
        if part in ("both", "speed"):
            speed = speed_rows(sizes, tile, keep, turns, seed, console)
            kernel = kernel_for(torch.device("cpu"))
            console.print(render_table(f"forwards over whole canvases, {LAYERS} layers, kernel {kernel}, medians of {turns}", SPEED, speed))
            answers = [row | {"whole": row["dense"] / row["answer"]} for row in speed]
            wins = {"forward": wins_from(speed, "sparse"), "answer": wins_from(answers, "whole")}
            told = ", ".join(f"{what}: {start or 'at none of these lengths'}" for what, start in wins.items())
            console.print(f"sparse attention wins from (positions): {told}")
        if part in ("both", "quality"):
            for name in names:
                with console.status(f"training and asking the model of {name}"):
                    quality.extend(quality_rows(sorting(name, count, seed), seed))
            console.print(render_table("static, one position per step; 95 % bootstrap intervals over prompts", QUALITY, quality))
        if json is not None:
            settings = {
                "lengths": sizes,
                "tile": tile,
                "keep": keep,
                "rounds": turns,
                "prompts": count,
                "threads": torch.get_num_threads(),
            }
            record = Record("sparsed", speed, settings, {"seed": seed}, extra={"quality": quality, "wins_from": wins})
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

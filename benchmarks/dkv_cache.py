"""dKV-Cache: what it changes on a model trained on the spot, and tokens per second at growing answers.

    python benchmarks/dkv_cache.py --json benchmarks/results             # both parts: about twenty minutes on one core
    python benchmarks/dkv_cache.py --quick                               # weak model, 30 prompts, answers of 64: two minutes
    python benchmarks/dkv_cache.py --part speed --model pocket-dlm --lengths 64,128,256,512 --batches 1,8
    python benchmarks/dkv_cache.py --part text --model pocket-dlm --lengths 64,128,256,512 --rounds 1 --pictures docs/assets

Part `quality` decodes the sort-and-reverse task (`paceline.bench.sort_reverse`) with a weak and a good model. Agreement is with static
decoding of the same order, one position per step, without a cache. Expected: rows per answer of the closed form, 816, 618, 492 and 429 for
Decode with refresh 1, 2, 4 and 8; agreement falls with the refresh; without the one-step delay it is lower for fewer rows.

Part `speed` times static decoding, one position per step, on a model with random weights of the shape of `pocket-dlm`, or on `--model`.

Part `text` asks `--model` held-out problems and held-out code (`paceline.bench.denoising_text`): speed, edits away from static decoding,
problems solved, code that parses and how likely an autoregressive model finds it, and pictures of each against speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from paceline.bench.denoising_report import report_text
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.denoising_text import TextSettings, numbers
from paceline.bench.random_denoiser import random_denoiser
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.bench.sort_reverse import ANSWER, PROMPT, Training, examples, train
from paceline.core.errors import PacelineError
from paceline.denoising.denoiser import Denoiser
from paceline.engine.llm import LLM
from paceline.engine.load import load

BLOCK = 8  # of the task; the speed part takes the usual one
MODELS = {"weak": 520, "good": 900}
PARTS = ("both", "quality", "speed", "text")
ASKED = 64  # tokens of prompt in the speed part
WARM_UP = 4  # tokens decided before time is taken


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the quality table.

    Args:
        options: of `static`.
        order: whose uncached decoding it is compared with.
        label: what is changed beyond options.
        change: that change.
    """

    options: str
    order: str = "low_confidence"
    label: str = ""
    change: Callable[[Denoiser], Denoiser] | None = None

    @property
    def method(self) -> str:
        return ",".join(filter(None, [f"static:block={BLOCK},algorithm={self.order}", self.options]))


def _undelayed(denoiser: Denoiser) -> Denoiser:
    return replace(denoiser, policy=replace(denoiser.policy, delay=False))  # type: ignore[type-var]


REFRESHES = (1, 2, 4, 8, 16)
GREEDY = (1, 2, 4)
VARIANTS = (
    Variant(""),
    *(Variant(f"cache=dkv-decode,refresh={refresh}") for refresh in REFRESHES),
    *(Variant(f"cache=dkv-decode,refresh={refresh}", label="no delay", change=_undelayed) for refresh in (4, 8)),
    Variant("cache=dkv-prefill"),
    *(Variant(f"cache=dkv-pd,refresh={refresh}") for refresh in (1, 4, 8)),
    Variant("per_step=2"),
    Variant("per_step=2,cache=dkv-decode,refresh=4"),
    Variant("", "random"),
    *(Variant(f"cache=dkv-greedy,refresh={refresh},dkv_window=0", "random") for refresh in GREEDY),
    *(Variant(f"cache=dkv-greedy,refresh=2,dkv_window=4,dkv_center={center}", "random") for center in ("prev", "next")),
)
CACHES = ("none", "prefix", "dual", "dkv-decode,refresh=4", "dkv-decode,refresh=8", "dkv-prefill", "dkv-pd")
TEXT = (
    "static",
    *(f"static:cache={cache}" for cache in CACHES[1:]),
    "static:per_step=2",
    "static:per_step=2,cache=dkv-decode",
    "static:algorithm=random",
    *(f"static:algorithm=random,cache=dkv-greedy,dkv_window={window}" for window in (0, 4)),
    *(f"threshold:cache={cache}" for cache in ("none", "dual", "dkv-decode", "dkv-pd")),
)


def _spread(name: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, text)


QUALITY = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("", "label", numeric=False),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    Column("from cache", lambda row: f"{row['cached']:.2f}"),
    *(_spread(name) for name in ("exact", "identical", "agree")),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
]
SPEED = [
    Column("tokens", "tokens"),
    Column("batch", "batch"),
    Column("cache", "cache", numeric=False),
    Column("rows per forward", lambda row: f"{row['rows_per_forward']:.0f}"),
    Column("tokens/s", lambda row: f"{row['tokens_per_second']:.1f}"),
    Column("against none", lambda row: f"{row['speedup']:.2f}x"),
]


def quality_rows(name: str, prompts: int, batch: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Train a model and measure every variant on it."""
    with console.status(f"training the {name} model"):
        decoder = train(Training(steps=MODELS[name], seed=seed))
    model = load(decoder, "static", device="cpu", kv_tokens=256, pack=False)
    asked, answers = examples(prompts, seed + 1)
    references: dict[str, Run] = {}
    found = []
    for variant in VARIANTS:
        run = run_method(model, variant.method, asked.tolist(), ANSWER, batch, variant.change)
        reference = references.setdefault(variant.order, run)  # the first of each order has no cache
        row = row_of(run, reference, answers.tolist(), seed)
        cached = 1 - row["rows"] / (row["forwards"] * (PROMPT + ANSWER))
        found.append({"model": name, "label": variant.label, **row, "cached": cached})
    return found


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was expected of the quality table, and whether it holds, a sentence per model."""
    told = []
    for name in dict.fromkeys(row["model"] for row in rows):
        decode = [row for row in rows if row["model"] == name and "cache=dkv-decode" in row["method"] and "per_step" not in row["method"]]
        delayed, others = ([row for row in decode if bool(row["label"]) is labelled] for labelled in (False, True))
        falls = all(later["agree"] <= earlier["agree_interval"][1] for earlier, later in pairwise(delayed))
        twins = {row["method"]: row for row in delayed}
        below = all(row["agree"] <= twins[row["method"]]["agree"] for row in others)
        faster = all(later["seconds"] <= earlier["seconds"] for earlier, later in pairwise(delayed))
        yes = {True: "yes", False: "no"}
        told.append(
            f"{name}: agreement falls with the refresh, within intervals: {yes[falls]}; it is lower without the delay: {yes[below]}; "
            f"seconds fall with the rows fed: {yes[faster]}"
        )
    return told


def speed_rows(
    model: LLM, lengths: Sequence[int], batches: Sequence[int], rounds: int, seed: int, console: Console
) -> list[dict[str, Any]]:
    """Time every cache at every length and batch, in turn, and divide by what no cache took in the same round."""
    generator = torch.Generator().manual_seed(seed)
    tokens = min(1000, model.runner.decoder.config.vocabulary - 1)
    found = []
    for length in lengths:
        for batch in batches:
            prompts = torch.randint(10, tokens, (batch, ASKED), generator=generator).tolist()
            times: dict[str, list[float]] = {cache: [] for cache in CACHES}
            rows: dict[str, float] = {}
            for number in range(rounds):
                for cache in CACHES:
                    with console.status(f"{length} tokens, batch {batch}, cache={cache}, round {number + 1} of {rounds}"):
                        seconds, rows[cache] = _timed(model, cache, prompts, length)
                    times[cache].append(seconds)
            for cache in CACHES:
                ratio = median(none / own for none, own in zip(times["none"], times[cache], strict=True))
                found.append({
                    "tokens": length, "batch": batch, "cache": cache, "rows_per_forward": rows[cache], "seconds": median(times[cache]),
                    "tokens_per_second": batch * length / median(times[cache]), "speedup": ratio,
                })  # fmt: skip
    return found


def _timed(model: LLM, cache: str, prompts: list[list[int]], length: int) -> tuple[float, float]:
    """Seconds for all prompts together, and rows per forward of one."""
    room = len(prompts) * (ASKED + length + 64)
    llm = load(
        model,
        f"static:cache={cache}",
        device=model.runner.decoder.device,
        kv_tokens=room,
        max_sequences=len(prompts),
        max_rows=1 << 20,
        prefix_cache=False,
    )
    llm.generate(prompts[:1], max_tokens=WARM_UP, ignore_eos=True)
    start = perf_counter()
    outputs = llm.generate(prompts, max_tokens=length, ignore_eos=True)
    seconds = perf_counter() - start
    return seconds, outputs[0].stats.rows / outputs[0].stats.forwards


def main(
    part: Annotated[str, typer.Option(help="quality, speed, both, or text (of --model)")] = "both",
    models: Annotated[str, typer.Option(help=f"which of {', '.join(MODELS)}, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    batch: Annotated[int, typer.Option(help="prompts of the quality part decoded together")] = 32,
    model: Annotated[str, typer.Option(help="checkpoint of the other parts; for speed, random weights if not given")] = "",
    lengths: Annotated[str, typer.Option(help="answers of these parts, in tokens")] = "128,512",
    batches: Annotated[str, typer.Option(help="batch sizes of these parts")] = "1,8",
    rounds: Annotated[int, typer.Option(help="times that every cache has its turn")] = 3,
    questions: Annotated[int, typer.Option(help="of the text part: half problems, half code")] = 16,
    judge: Annotated[str, typer.Option(help="of the text part: autoregressive model that judges code")] = "pocket-code",
    pictures: Annotated[Path | None, typer.Option(help="of the text part: folder for pictures of quality against speed")] = None,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model, 30 prompts, answers of 64 tokens, one round")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    count, turns = (30, 1) if quick else (prompts, rounds)
    try:
        names, sizes, sides = (["weak"], (64,), (1,)) if quick else (models.split(","), numbers(lengths), numbers(batches))
        if part not in PARTS:
            raise typer.BadParameter(f"unknown part {part!r}; known: {', '.join(PARTS)}")
        if part == "text":
            if not model:
                raise typer.BadParameter("part text needs --model, a diffusion model with a tokenizer such as pocket-dlm")
            asking = TextSettings(sizes, sides, questions, rounds=turns, seed=seed, judge=judge)
            report_text(console, model.split(","), TEXT, asking, name="dkv-cache", json=json, pictures=pictures)
            return
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        quality: list[dict[str, Any]] = []
        speed: list[dict[str, Any]] = []
        if part in ("both", "quality"):
            quality = [row for name in names for row in quality_rows(name, count, batch, seed, console)]
            console.print(render_table("per answer of 24 tokens; 95 % bootstrap intervals over prompts", QUALITY, quality))
            for sentence in verdicts(quality):
                console.print(sentence)
        if part in ("both", "speed"):
            timed = load(model or random_denoiser(ASKED + max(sizes) + 64), "static", device="cpu", kv_tokens=64)
            speed = speed_rows(timed, sizes, sides, turns, seed, console)
            console.print(render_table(f"static, one position per step, prompts of {ASKED} tokens; medians of {turns}", SPEED, speed))
        if json is not None:
            settings = {"prompts": count, "batch": batch, "lengths": sizes, "batches": sides, "rounds": turns}
            settings |= {"model": public_name(model) if model else "random weights", "threads": torch.get_num_threads()}
            record = Record("dkv-cache", quality, settings, {"seed": seed}, notes=verdicts(quality), extra={"speed": speed})
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

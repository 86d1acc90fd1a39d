"""SparseD: seconds of dense against sparse forwards at growing context, and what sparse patterns change on a model trained on the spot.

    python benchmarks/sparsed.py --json benchmarks/results      # both parts: about half an hour on one core
    python benchmarks/sparsed.py --quick                        # contexts up to 1,024, weak model, 30 prompts: two minutes
    python benchmarks/sparsed.py --part quality --models needles             # eight needles in prompts of 512 tokens: ten minutes
    python benchmarks/sparsed.py --part text --model pocket-dlm --prompts 16 --rounds 1 --pictures docs/assets

Part `speed` runs a two-layer model with random weights of the shape of `pocket-dlm`. Forwards are timed in float32, with weights as
checkpoints store them and packed as loading packs them, and in bf16, packed; the length from which sparse attention wins is judged within
a type, by the faster of the two on either side. `kernel` says how sparse attention is computed: by torch over gathered blocks, or in the
kernel of all layers, span by span.
`answer` is what a whole answer of 128 steps would gain: 20 % of its forwards are full, and the last of those chooses the patterns.

Part `quality` decodes tasks with models trained on the spot: `weak` and `good` sort and reverse (34 positions, pattern blocks of two),
`needles` reads out eight digits that lie anywhere in a prompt of `--context` tokens (pattern blocks of 16). Agreement is with dense
static decoding. `kept` is the share of attention weight that falls on kept blocks in the last fifth of the steps, as a mean and for the
worst head; `of the answer` is the share that is kept of the weight on keys of the answer; `work` is what an answer's attention
multiplies, as a share of what dense attention does. Expected: sparse patterns keep more than a window or sinks of the same density, and
isolated selection more of the answer than selection over all blocks; needles are found by sparse patterns about as often as by dense
attention, by windows hardly ever.

Part `text` asks `--model` held-out problems and long pieces of held-out code (`paceline.bench.denoising_text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from paceline.attention.sparse import block_sparse, kernel_for
from paceline.attention.sparse_pattern import choose_pattern
from paceline.bench.denoising_report import report_text
from paceline.bench.denoising_text import TextSettings, numbers
from paceline.bench.random_denoiser import random_denoiser
from paceline.bench.report import Column, Record, render_table
from paceline.bench.sparse_quality import MODELS, PATTERNS, quality_rows, task_of
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.core.errors import PacelineError
from paceline.denoising.sparsed import dense
from paceline.engine.llm import LLM
from paceline.engine.load import load

STEPS = 6  # forwards of every timed answer
ANSWER_STEPS, SKIP = 128, 0.2  # of the answer that `answer` stands for
LAYERS = 2
FORMS = ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True))  # weights as stored or packed
PARTS = ("both", "quality", "speed", "text")
TEXT_TILE = 16
TEXT = (
    "static",
    *(f"static:attention=sparsed,sparse_tile={TEXT_TILE},{options}" for options in PATTERNS if not options.endswith("=1")),
    "threshold",
    f"threshold:attention=sparsed,sparse_tile={TEXT_TILE},sparse_keep=0.5",
)


def speed_rows(lengths: Sequence[int], tile: int, keep: float, rounds: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Time forwards of both kinds in turn, and attention alone where it is a call of its own."""
    found = []
    for dtype, packed in FORMS:
        made = random_denoiser(max(lengths), layers=LAYERS, pack=packed, seed=seed, dtype=dtype)
        model = load(made, "static", device="cpu", kv_tokens=64, pack=packed)
        fused = made.stack is not None and made.stack.patterned
        form = {"weights": "packed" if packed else "plain", "type": str(dtype).removeprefix("torch.")}
        for length in lengths:
            with console.status(f"{length} positions, {form['weights']} {form['type']} weights"):
                row: dict[str, Any] = {"positions": length, **form, "tile": tile, **_forwards(model, length, tile, keep, rounds)}
                row["kernel"] = "spans" if fused else kernel_for(torch.device("cpu"))
                row |= _attention(model, length, tile, keep, rounds, seed)
                if fused:
                    row["attention"] = None  # it is no call of its own there
            full = int(ANSWER_STEPS * SKIP)
            whole = full * row["dense"] + row["choosing"] + (ANSWER_STEPS - full - 1) * row["sparse"]
            found.append(row | {"forward": row["dense"] / row["sparse"], "answer": ANSWER_STEPS * row["dense"] / whole})
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


def wins_from(rows: Sequence[Mapping[str, Any]], sparse: str, dtype: str) -> int | None:
    """The shortest length from which the fastest sparse run beats the fastest dense one of its type at every length measured.

    Args:
        sparse: field with seconds of the sparse side.
        dtype: of the weights.
    """
    start = None
    rows = [row for row in rows if row["type"] == dtype]
    for length in sorted({row["positions"] for row in rows}):
        here = [row for row in rows if row["positions"] == length]
        won = min(row[sparse] for row in here) < min(row["dense"] for row in here)
        start = (start or length) if won else None
    return start


def _spread(name: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, text)


def _milliseconds(name: str) -> Column:
    return Column(f"{name}, ms", lambda row: f"{1000 * row[name]:.1f}")


SPEED = [
    Column("positions", "positions"),
    *(Column(name, name, numeric=False) for name in ("type", "weights", "kernel")),
    Column("density", lambda row: f"{row['density']:.2f}"),
    *(_milliseconds(name) for name in ("dense", "choosing", "sparse")),
    Column("forward", lambda row: f"{row['forward']:.2f}x"),
    Column("attention alone", lambda row: "" if row["attention"] is None else f"{row['attention']:.2f}x"),
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
    Column("work", lambda row: f"{row['work']:.2f}"),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
]


def main(
    part: Annotated[str, typer.Option(help="quality, speed, both, or text (of --model)")] = "both",
    lengths: Annotated[str, typer.Option(help="canvases of the speed part, answers of the text part, in positions")] = "",
    tile: Annotated[int, typer.Option(help="positions per block in the speed part")] = 128,
    keep: Annotated[float, typer.Option(help="share of blocks kept in the speed part")] = 0.3,
    rounds: Annotated[int, typer.Option(help="times that both kinds have their turn")] = 3,
    models: Annotated[str, typer.Option(help=f"which of {', '.join(MODELS)}, separated by commas")] = "weak,good,needles",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    context: Annotated[int, typer.Option(help="tokens of a prompt with needles")] = 512,
    model: Annotated[str, typer.Option(help="checkpoints of the text part, separated by commas")] = "",
    chars: Annotated[int, typer.Option(help="of the text part: longest piece of code")] = 1800,
    batches: Annotated[str, typer.Option(help="of the text part: answers decoded together")] = "1",
    judge: Annotated[str, typer.Option(help="of the text part: autoregressive model that judges code")] = "pocket-code",
    pictures: Annotated[Path | None, typer.Option(help="of the text part: folder for pictures of quality against speed")] = None,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="contexts up to 1,024, one round, weak model, 30 prompts")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    names, count, turns = (["weak"], 30, 1) if quick else (models.split(","), prompts, rounds)
    try:
        sizes = (256, 512, 1024) if quick else numbers(lengths or ("64" if part == "text" else "256,512,1024,2048,4096,8192"))
        if part not in PARTS:
            raise typer.BadParameter(f"unknown part {part!r}; known: {', '.join(PARTS)}")
        if part == "text" or model:
            if not model:
                raise typer.BadParameter("part text needs --model, a diffusion model with a tokenizer such as pocket-dlm")
            asking = TextSettings(sizes, numbers(batches), count, chars, turns, seed, judge)
            report_text(console, model.split(","), TEXT, asking, name="sparsed", json=json, pictures=pictures)
            return
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        speed: list[dict[str, Any]] = []
        quality: list[dict[str, Any]] = []
        wins: dict[str, int | None] = {}
        if part in ("both", "speed"):
            speed = speed_rows(sizes, tile, keep, turns, seed, console)
            console.print(render_table(f"forwards over whole canvases, {LAYERS} layers, medians of {turns}", SPEED, speed))
            answers = [row | {"whole": row["dense"] / row["answer"]} for row in speed]
            for dtype in dict.fromkeys(row["type"] for row in speed):
                wins |= {f"{dtype} forward": wins_from(speed, "sparse", dtype), f"{dtype} answer": wins_from(answers, "whole", dtype)}
            told = ", ".join(f"{what}: {start or 'at none of these lengths'}" for what, start in wins.items())
            console.print(f"sparse attention wins from (positions): {told}")
        if part in ("both", "quality"):
            for name in names:
                with console.status(f"training and asking the model of {name}"):
                    quality.extend(quality_rows(task_of(name, count, seed, context), seed))
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

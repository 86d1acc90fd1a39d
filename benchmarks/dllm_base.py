"""Base decoders of masked diffusion models: forwards, rows fed, what each of them changes, and what its answers are worth.

    python benchmarks/dllm_base.py --json benchmarks/results     # weak and good model, 100 prompts: about five minutes on one core
    python benchmarks/dllm_base.py --quick                       # weak model, 30 prompts: a minute
    python benchmarks/dllm_base.py --model pocket-dlm,pocket-dlm-block --lengths 64,128,256,512 --pictures docs/assets

Without `--model`, models are trained on the spot. They have 150,720 parameters and sort up to eight digits
(`paceline.bench.sort_reverse`): 520 training steps make a weak one, whose decoders differ, 900 a good one. Expected: static decoding feeds
816 rows per answer, prefix cache 438, dual cache 270, exactly; thresholds trade forwards for agreement with static decoding, monotonically;
caches change more tokens than thresholds do on the weak model.

With `--model`, checkpoints are asked held-out problems and held-out code (`paceline.bench.denoising_text`), at growing answers and batches:
speed up to the ends of text, answers identical to static decoding and edits away from it, problems solved, code that `ast.parse` reads, and
its bits per byte under an autoregressive model. Pictures draw each of these against speed; the last column of the table names the measures
in which no other method of that length and batch is as good and as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_report import report_text
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.denoising_text import TextSettings, numbers
from paceline.bench.report import Column, Record, render_table
from paceline.bench.sort_reverse import ANSWER, Training, examples, train
from paceline.core.errors import PacelineError
from paceline.engine.load import load

BLOCK = 8
REFERENCE = f"static:block={BLOCK}"
METHODS = (
    REFERENCE,
    *(f"static:block={BLOCK},per_step={count}" for count in (2, 4, 8)),
    *(f"threshold:block={BLOCK},threshold={bar}" for bar in (0.95, 0.9, 0.8, 0.6)),
    f"factor:block={BLOCK}",
    *(f"static:block={BLOCK},cache={cache}" for cache in ("prefix", "dual")),
    *(f"threshold:block={BLOCK},cache={cache}" for cache in ("prefix", "dual")),
)
TEXT = tuple(method.replace(f"block={BLOCK},", "").replace(f":block={BLOCK}", "") for method in METHODS)  # the usual block
MODELS = {"weak": 520, "good": 900}


def _spread(name: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, text)


COLUMNS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    *(_spread(name) for name in ("exact", "identical", "agree")),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
]


def rows_of(name: str, steps: int, prompts: int, batch: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Train a model and measure every method on it."""
    with console.status(f"training the {name} model"):
        decoder = train(Training(steps=steps, seed=seed))
    model = load(decoder, REFERENCE, device="cpu", kv_tokens=256, pack=False)
    asked, answers = examples(prompts, seed + 1)
    reference: Run | None = None
    found = []
    for method in METHODS:
        run = run_method(model, method, asked.tolist(), ANSWER, batch)
        reference = reference or run
        found.append({"model": name, **row_of(run, reference, answers.tolist(), seed)})
    return found


def main(
    models: Annotated[str, typer.Option(help=f"which of {', '.join(MODELS)}, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    model: Annotated[str, typer.Option(help="checkpoints to ask text instead, separated by commas")] = "",
    lengths: Annotated[str, typer.Option(help="with --model: most tokens of an answer")] = "64,128,256,512",
    batches: Annotated[str, typer.Option(help="with --model: answers decoded together")] = "1,8",
    questions: Annotated[int, typer.Option(help="with --model: half problems, half code")] = 16,
    rounds: Annotated[int, typer.Option(help="with --model: times that every method has its turn")] = 1,
    judge: Annotated[str, typer.Option(help="with --model: autoregressive model that judges code")] = "pocket-code",
    pictures: Annotated[Path | None, typer.Option(help="with --model: folder for pictures of quality against speed")] = None,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model and 30 prompts")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the table, and write a record with --json."""
    console = Console(width=170)
    names, count = (["weak"], 30) if quick else (models.split(","), prompts)
    try:
        if model:
            settings = TextSettings(numbers(lengths), numbers(batches), questions, rounds=rounds, seed=seed, judge=judge)
            report_text(console, model.split(","), TEXT, settings, name="dllm-base", json=json, pictures=pictures)
            return
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        rows = [row for name in names for row in rows_of(name, MODELS[name], count, batch, seed, console)]
        console.print(render_table("per answer of 24 tokens; 95 % bootstrap intervals over prompts", COLUMNS, rows))
        if json is not None:
            told = {"models": names, "prompts": count, "batch": batch, "block": BLOCK}
            console.print(f"wrote {Record('dllm-base', rows, told, {'seed': seed}).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

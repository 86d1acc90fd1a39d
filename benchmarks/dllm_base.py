"""Base decoders of masked diffusion models on a model trained on the spot: forwards, rows fed, and what each of them changes.

    python benchmarks/dllm_base.py --json benchmarks/results     # weak and good model, 100 prompts: about five minutes on one core
    python benchmarks/dllm_base.py --quick                       # weak model, 30 prompts: a minute

The model has 150,720 parameters and sorts up to eight digits (`paceline.bench.sort_reverse`): 520 training steps make a weak one, whose
decoders differ, 900 a good one. Expected: static decoding feeds 816 rows per answer, prefix cache 438, dual cache 270, exactly; thresholds
trade forwards for agreement with static decoding, monotonically; caches change more tokens than thresholds do on the weak model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_rows import Run, row_of, run_method
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
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model and 30 prompts")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the table, and write a record with --json."""
    console = Console(width=170)
    names, count = (["weak"], 30) if quick else (models.split(","), prompts)
    try:
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        rows = [row for name in names for row in rows_of(name, MODELS[name], count, batch, seed, console)]
        console.print(render_table("per answer of 24 tokens; 95 % bootstrap intervals over prompts", COLUMNS, rows))
        if json is not None:
            settings = {"models": names, "prompts": count, "batch": batch, "block": BLOCK}
            console.print(f"wrote {Record('dllm-base', rows, settings, {'seed': seed}).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

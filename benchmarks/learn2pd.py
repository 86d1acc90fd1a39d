"""Learn2PD on a model trained on the spot: the oracle, the trained filter against plain thresholds, and what end-of-text prediction saves.

    python benchmarks/learn2pd.py --json benchmarks/results     # weak and good model, 200 prompts to train on, 100 to measure
    python benchmarks/learn2pd.py --quick                       # weak model, 60 and 30 prompts: about two minutes on one core

The model sorts up to eight digits (`paceline.bench.sort_reverse`): 520 training steps make a weak one, 900 a good one. Filters are trained
on other prompts than they are measured on. Expected: the oracle needs the fewest forwards and arrives at the static answer every time; the
filter's validation loss is below that of the constant and of each position's own confidence; its share of wrong tokens on held-out prompts
is near the target. Whether filter or plain threshold is ahead at equal forwards is what the table is for. End-of-text prediction lowers the
rows fed, the more so the longer the canvas is beyond the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, Record, render_table
from paceline.bench.sort_reverse import ANSWER, EOS, Training, examples, train
from paceline.core.errors import PacelineError
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.training.learn2pd import FilterJob, train_filter
from paceline.training.learn2pd_fit import FitOptions
from paceline.training.learn2pd_traces import trace

BLOCK = 8
MODELS = {"weak": 520, "good": 900}
BARS = (0.5, 0.8, 0.9, 0.96)
PLAIN = (
    f"static:block={BLOCK}",
    *(f"threshold:block={BLOCK},threshold={bar}" for bar in (0.95, 0.9, 0.8, 0.6)),
    f"factor:block={BLOCK}",
    f"localleap:block={BLOCK}",
)
LENGTHS = (24, 48, 96)


def _spread(name: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, text)


FRONTIER = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    *(_spread(name) for name in ("exact", "identical", "agree")),
]
FITS = [
    Column("model", "model", numeric=False),
    Column("layers", "layers"),
    Column("records", "records"),
    Column("final", lambda row: f"{row['positives']:.1%}"),
    Column("oracle forwards", lambda row: f"{row['oracle']:.2f}"),
    Column("loss", lambda row: f"{row['loss']['validation']:.3f}"),
    Column("constant", lambda row: f"{row['loss_constant']:.3f}"),
    Column("position alone", lambda row: f"{row['loss_logistic']:.3f}"),
    Column("threshold", lambda row: f"{row['threshold']:g}"),
    Column("accepted (wrong)", lambda row: _share(row["test"])),
    Column("one bar", lambda row: _share(row["scalar_threshold"])),
    Column("bar per position", lambda row: _share(row["threshold_per_position"])),
]
ENDS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("canvas", "length"),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    *(_spread(name) for name in ("exact", "identical")),
]


def _share(found: Mapping[str, float]) -> str:
    return f"{found['accepted']:.1%} ({found['wrong']:.1%})"


def filters(model: LLM, name: str, count: int, folder: Path, seed: int, console: Console) -> tuple[list[dict[str, Any]], str]:
    """Train filters of one, two and four layers; rows, and the method string of the published one, which has two."""
    prompts = [row.tolist() for row in examples(count, seed + 1000)[0]]
    rows = []
    for layers in (1, 2, 4):
        job = FilterJob(BLOCK, ANSWER, "probability", 50, FitOptions(layers=layers, seed=seed))
        with console.status(f"{name}: a filter of {layers} layers"):
            made = train_filter(model, prompts, job, folder / f"{name}-{layers}.safetensors", folder)
        told = made.facts.training
        rows.append(
            {"model": name, "layers": layers, "threshold": made.facts.threshold, "oracle": told["records"] / told["prompts"], **told}
        )
    return rows, f"learn2pd:block={BLOCK},filter={folder / f'{name}-2.safetensors'}"


def frontier(model: LLM, name: str, learned: str, count: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Forwards and agreement with static decoding of every rule; the oracle's first."""
    asked, answers = (table.tolist() for table in examples(count, seed + 1))
    with console.status(f"{name}: the oracle"):
        known = trace(model, asked, ANSWER, BLOCK)
    oracle = {"exact": 1.0, "identical": 1.0, "agree": 1.0}
    reference: Run | None = None
    rows: list[dict[str, Any]] = []
    for method in (*PLAIN, *(f"{learned},threshold={bar}" for bar in BARS), learned):
        with console.status(f"{name}: {_shown(method)}"):
            run = run_method(model, method, asked, ANSWER)
        reference = reference or run
        rows.append({"model": name, **row_of(run, reference, answers, seed), "method": _shown(method)})
    for measure in ("exact", "identical", "agree"):  # what static decoding has, since the oracle arrives there
        oracle[f"{measure}_interval"] = rows[0][f"{measure}_interval"]
        oracle[measure] = rows[0][measure]
    return [{"model": name, "method": "oracle (knows the answer)", "forwards": known.forwards / count, **oracle}, *rows]


def ends(model: LLM, name: str, learned: str, count: int, seed: int, console: Console) -> list[dict[str, Any]]:
    """Rows fed with and without end-of-text prediction, answers of one length on canvases of several."""
    asked, answers = (table.tolist() for table in examples(count, seed + 1))
    rows = []
    for length in LENGTHS:
        right = [[*answer, *[EOS] * (length - ANSWER)] for answer in answers]
        for base in (f"static:block={BLOCK}", learned):
            reference: Run | None = None
            for mode in ("off", "committed", "reference"):
                method = f"{base},eotp={mode},early_exit={str(mode != 'off').lower()}"
                with console.status(f"{name}: {_shown(method)}, {length} tokens"):
                    run = run_method(model, method, asked, length)
                reference = reference or run
                rows.append({"model": name, "length": length, **row_of(run, reference, right, seed), "method": _shown(method)})
    return rows


def _shown(method: str) -> str:
    """A method string without the filter's path."""
    name, _, options = method.partition(":")
    return f"{name}:{','.join(part for part in options.split(',') if not part.startswith('filter='))}"


def main(
    models: Annotated[str, typer.Option(help=f"which of {', '.join(MODELS)}, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts to measure on, per model")] = 100,
    training: Annotated[int, typer.Option(help="prompts that filters are trained on, per model")] = 200,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model, 30 prompts, 60 to train on")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    names, count, learnt = (["weak"], 30, 60) if quick else (models.split(","), prompts, training)
    fits: list[dict[str, Any]] = []
    fronts: list[dict[str, Any]] = []
    tails: list[dict[str, Any]] = []
    try:
        if unknown := [name for name in names if name not in MODELS]:
            raise typer.BadParameter(f"unknown model {unknown[0]!r}; known: {', '.join(MODELS)}")
        with TemporaryDirectory() as made:
            for name in names:
                with console.status(f"training the {name} model"):
                    decoder = train(Training(steps=MODELS[name], seed=seed))
                model = load(decoder, "static", device="cpu", kv_tokens=256, pack=False)
                rows, learned = filters(model, name, learnt, Path(made), seed, console)
                fits += rows
                fronts += frontier(model, name, learned, count, seed, console)
                tails += ends(model, name, learned, count, seed, console)
        console.print(render_table("filters: cross-entropy on validation prompts, decisions on test prompts", FITS, fits))
        console.print(render_table("per answer of 24 tokens; 95 % bootstrap intervals over prompts", FRONTIER, fronts))
        console.print(render_table("end-of-text prediction, by length of the canvas; identical to the same method without it", ENDS, tails))
        if json is not None:
            settings = {"models": names, "prompts": count, "training": learnt, "block": BLOCK}
            rows = [{"table": table, **row} for table, part in (("filter", fits), ("frontier", fronts), ("eotp", tails)) for row in part]
            console.print(f"wrote {Record('learn2pd', rows, settings, {'seed': seed}).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

"""Learn2PD: the oracle, the trained filter against plain thresholds, and what end-of-text prediction saves.

    python benchmarks/learn2pd.py --json benchmarks/results     # weak and good toy model, 200 prompts to train on, 100 to measure
    python benchmarks/learn2pd.py --quick                       # weak model, 60 and 30 prompts: about two minutes on one core
    python benchmarks/learn2pd.py --model pocket-dlm --prompts 60 --pictures docs/assets   # held-out problems, answers of 64 tokens

Toy models (`paceline.bench.sort_reverse`) sort up to eight digits: 520 training steps make a weak one, 900 a good one. Filters are trained
on other prompts than they are measured on; a checkpoint's own, made by `paceline train learn2pd`, is taken where it lies beside the model.
Expected: the oracle needs the fewest forwards and arrives at the static answer every time; the filter's validation loss is below that of
the constant and of each position's own confidence; its share of wrong tokens on held-out prompts is near the target. Whether filter or
plain threshold is ahead at equal forwards (`lead`) is what the table is for. End-of-text prediction lowers the rows fed, the more so the
longer the canvas is beyond the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_grounds import TOYS, Ground, text, toy
from paceline.bench.denoising_rivals import COLUMNS, Rival, rival_rows, thresholds, verdicts
from paceline.bench.denoising_rivals_plot import plot_rivals
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.bench.sort_reverse import ANSWER, EOS, examples
from paceline.core.errors import PacelineError
from paceline.denoising.learn2pd_filter import Filter, load_filter
from paceline.training.learn2pd import FilterJob, beside, default_prompts, train_filter
from paceline.training.learn2pd_fit import FitOptions
from paceline.training.learn2pd_traces import trace

BARS = (0.5, 0.8, 0.9, 0.96, 0.99)
TIMES = (1, 2, 4)  # lengths of canvases, in answers
TRACED = 8  # prompts that the oracle decodes together
TAILS = 20  # prompts of a checkpoint for long canvases, which are slow without end-of-text prediction


def _spread(name: str) -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f}-{high:.3f})"

    return Column(name, cell)


def _share(found: Mapping[str, float]) -> str:
    return f"{found['accepted']:.1%} ({found['wrong']:.1%})"


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
Tell = Callable[[str], None]


def filters(ground: Ground, count: int, folder: Path, seed: int, retrain: bool, tell: Tell) -> tuple[list[dict[str, Any]], Path]:
    """Filters of one, two and four layers, and the file of the published one, which has two; or the filter beside a checkpoint."""
    if ground.name not in TOYS and not retrain and (own := beside(ground.model, ground.block)).is_file():
        return [_facts(ground, load_filter(own))], own
    if ground.name in TOYS:
        prompts = [row.tolist() for row in examples(count, seed + 1000)[0]]
    else:
        prompts = [list(ground.model.request(prompt).ids) for prompt in default_prompts(count, seed)]
    rows = []
    for layers in (1, 2, 4):
        job = FilterJob(ground.block, ground.length, "probability", TRACED, FitOptions(layers=layers, seed=seed))
        made = train_filter(
            ground.model, prompts, job, folder / f"{layers}.safetensors", folder,
            report=lambda what, done, total: tell(f"a filter, {what} ({done} of {total})"),
        )  # fmt: skip
        rows.append(_facts(ground, made))
    return rows, folder / "2.safetensors"


def _facts(ground: Ground, made: Filter) -> dict[str, Any]:
    told = made.facts.training
    own = {"model": public_name(ground.name), "layers": len(made.layers), "threshold": made.facts.threshold}
    return own | {"oracle": told["records"] / told["prompts"], **told}


def frontier(ground: Ground, file: Path, batch: int, seed: int, quick: bool, tell: Tell) -> list[dict[str, Any]]:
    """Forwards and agreement with static decoding of every rule; the oracle's first, which arrives at static decoding's answers."""
    own = f"learn2pd:filter={file}"
    rivals = [
        Rival("static", "static"),
        *thresholds(quick),
        *(Rival("factor", f"factor:factor={factor}") for factor in (1.0, 1.5)),
        *(Rival("localleap", f"localleap:relaxed={bar}") for bar in (0.75, 0.5)),
        *(Rival("learn2pd", f"{own},threshold={bar}", f"learn2pd:threshold={bar}") for bar in BARS),
        Rival("learn2pd", own, f"learn2pd ({load_filter(file).facts.threshold:g}, of its file)"),
    ]
    rows = rival_rows(ground, rivals, batch, seed, lambda what, done, total: tell(f"{what} ({done} of {total} methods)"))
    forwards = 0
    for first in range(0, len(ground.prompts), TRACED):
        tell(f"the oracle ({first} of {len(ground.prompts)} prompts)")
        forwards += trace(ground.model, ground.prompts[first : first + TRACED], ground.length, ground.block).forwards
    mean = forwards / len(ground.prompts)
    said = rows[0]["per_token"] / rows[0]["forwards"]
    oracle = {"family": "oracle", "method": "oracle (knows the answer)", "forwards": mean, "fewer": rows[0]["forwards"] / mean}
    return [rows[0] | oracle | {"per_token": said * mean}, *rows]


def ends(ground: Ground, file: Path, batch: int, seed: int, tell: Tell) -> list[dict[str, Any]]:
    """Rows fed with and without end-of-text prediction, answers of one length on canvases of several."""
    rows: list[dict[str, Any]] = []
    if ground.causal:  # computes nothing behind a block
        return rows
    if ground.name not in TOYS:
        ground = replace(ground, prompts=ground.prompts[:TAILS])
    for length in (ground.length * times for times in TIMES):
        for base in ("static", "threshold", f"learn2pd:filter={file}"):
            reference: Run | None = None
            for mode in ("off", "committed", "reference"):
                separator = "," if ":" in base else ":"
                method = f"{base}{separator}eotp={mode},early_exit={str(mode != 'off').lower()}"
                tell(f"{_shown(method)}, {length} tokens")
                run = run_method(ground.model, ground.method(method), ground.prompts, length, batch)
                reference = reference or run
                right = [tokens if _right(ground, index, tokens) else () for index, tokens in enumerate(run.tokens)]
                own = {"model": public_name(ground.name), "length": length, "method": _shown(method)}
                rows.append(row_of(run, reference, right, seed) | own)
    return rows


def _right(ground: Ground, index: int, tokens: tuple[int, ...]) -> bool:
    """Toy answers are followed by ends of text alone."""
    if ground.name not in TOYS:
        return ground.right(index, tokens)
    return ground.right(index, tokens[:ANSWER]) and set(tokens[ANSWER:]) <= {EOS}


def _shown(method: str) -> str:
    """A method string without the filter's path."""
    name, _, options = method.partition(":")
    return f"{name}:{','.join(part for part in options.split(',') if not part.startswith('filter='))}"


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(TOYS)} (trained here), or checkpoints, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts to measure on, per model")] = 100,
    training: Annotated[int, typer.Option(help="prompts that filters are trained on, per model")] = 200,
    retrain: Annotated[bool, typer.Option(help="train filters although one lies beside the checkpoint")] = False,
    length: Annotated[int, typer.Option(help="tokens per answer of a checkpoint")] = 64,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model, 30 prompts, 60 to train on, few thresholds")] = False,
    pictures: Annotated[Path | None, typer.Option(help="folder for pictures of quality against forwards")] = None,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    names = ["weak"] if quick and model == "weak,good" else model.split(",")
    count, learnt = (30, 60) if quick else (prompts, training)
    fits: list[dict[str, Any]] = []
    fronts: list[dict[str, Any]] = []
    tails: list[dict[str, Any]] = []
    told: list[str] = []
    try:
        for name in names:
            with console.status(f"preparing {name}") as status, TemporaryDirectory() as made:

                def tell(what: str, name: str = name, status: Any = status) -> None:
                    status.update(f"{name}: {what}")

                ground = toy(name, count, seed) if name in TOYS else text(name, count, length, seed)
                rows, file = filters(ground, learnt, Path(made), seed, retrain, tell)
                fits += rows
                own = frontier(ground, file, batch, seed, quick, tell)
                fronts += own
                tails += ends(ground, file, batch, seed, tell)
                told += verdicts(own, ["learn2pd", "factor", "localleap"])
        console.print(render_table("filters: cross-entropy on validation prompts, decisions on test prompts", FITS, fits))
        console.print(render_table("per answer; 95 % bootstrap intervals over prompts", COLUMNS, fronts))
        if tails:
            title = "end-of-text prediction, by length of the canvas; identical to the same method without it"
            console.print(render_table(title, ENDS, tails))
        for sentence in told:
            console.print(sentence, soft_wrap=True)
        if pictures is not None:
            for path in plot_rivals(fronts, pictures, "learn2pd"):
                console.print(f"wrote {path}")
        if json is not None:
            settings = {"models": [public_name(name) for name in names], "prompts": count, "training": learnt, "batch": batch}
            rows = [{"table": table, **row} for table, part in (("filter", fits), ("frontier", fronts), ("eotp", tails)) for row in part]
            console.print(f"wrote {Record('learn2pd', rows, settings, {'seed': seed}, notes=told).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

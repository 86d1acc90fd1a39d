"""LocalLeap against the frontier of plain thresholds: forwards and quality, and how reliable predictions are near sure ones.

    python benchmarks/localleap.py --json benchmarks/results             # both toy models, 100 prompts: about three minutes on one core
    python benchmarks/localleap.py --quick                               # weak model, 30 prompts, few settings: a minute
    python benchmarks/localleap.py --model pocket-dlm --prompts 60       # held-out problems, answers of 64 tokens

`lead` is the share of tokens that agree with static decoding, less that of plain threshold decoding at the same number of forwards
(interpolated between thresholds, prompt by prompt; 95 % bootstrap interval). Expected on the toy models, whose answers have no local
structure: no lead. The second table asks what the method rests on: is a prediction near a sure one more often final than one far away?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_frontier import Scored, agreement, lead
from paceline.bench.denoising_grounds import TOYS, Ground, text, toy
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, Record, render_table
from paceline.core.errors import PacelineError
from paceline.denoising.localleap_calibration import Watch, by_distance, predictions, suggested
from paceline.engine.load import load

THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
FACTORS = (0.5, 1.0, 1.5)
PER_STEP = (2, 4, 8)
RADII = (1, 2, 4, 8)
RELAXED = (0.85, 0.75, 0.65, 0.5)
FURTHEST = 16
ERROR = 0.02


def _lead(row: Mapping[str, Any]) -> str:
    if row["lead"] is None:
        return ""
    low, high = row["lead_interval"]
    return f"{row['lead']:+.4f} ({low:+.4f} to {high:+.4f})"


COLUMNS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("per token said", lambda row: f"{row['per_token']:.3f}"),
    Column("right", lambda row: f"{row['exact']:.3f} ({row['exact_interval'][0]:.2f}-{row['exact_interval'][1]:.2f})"),
    Column("identical", lambda row: f"{row['identical']:.3f}"),
    Column("agree", lambda row: f"{row['agree']:.4f}"),
    Column("lead", _lead),
]
NEAR = [
    Column("model", "model", numeric=False),
    Column("distance", "distance"),
    Column("predictions", "count"),
    Column("final", lambda row: "" if isnan(row["final"]) else f"{row['final']:.3f}"),
    Column(f"threshold for {ERROR:.0%} error", lambda row: f"{row['threshold']:.2f}"),
]


def methods_of(quick: bool) -> dict[str, list[str]]:
    """Method strings by family, the block left out."""
    radii, relaxed = ((4,), (0.75, 0.5)) if quick else (RADII, RELAXED)
    return {
        "static": ["static", *(f"static:per_step={count}" for count in PER_STEP)],
        "threshold": [f"threshold:threshold={bar}" for bar in (THRESHOLDS[1::2] if quick else THRESHOLDS)],
        "factor": [] if quick else [f"factor:factor={factor}" for factor in FACTORS],
        "localleap": [f"localleap:radius={radius},relaxed={bar}" for radius in radii for bar in relaxed]
        + ([] if quick else ["localleap:decay=true", "localleap:eos_anchor=false", "localleap:given_anchor=true"]),
    }


def rows_of(ground: Ground, batch: int, seed: int, quick: bool, console: Console) -> list[dict[str, Any]]:
    """One row per method, and for the others than thresholds their lead over these."""
    runs: dict[str, Run] = {}
    families = methods_of(quick)
    for family in families.values():
        for method in family:
            with console.status(f"{ground.name}: {method}"):
                runs[method] = run_method(ground.model, ground.method(method), ground.prompts, ground.length, batch)
    reference = runs["static"]
    frontier = [agreement(runs[method], reference) for method in families["threshold"]]
    found = []
    for name, family in families.items():
        for method in family:
            run = runs[method]
            answers = [tokens if ground.right(index, tokens) else () for index, tokens in enumerate(run.tokens)]
            scored: Scored = agreement(run, reference)
            ahead = lead(scored, frontier, seed) if name in ("localleap", "factor") else None
            said = sum(ground.said(tokens) for tokens in run.tokens)
            own = {
                "model": ground.name,
                "family": name,
                "per_token": sum(run.forwards) / said,
                "lead": None if ahead is None else ahead[0],
                "lead_interval": None if ahead is None else ahead[1],
            }
            found.append(row_of(run, reference, answers, seed) | own)
    return found


def near(ground: Ground, anchor: float) -> list[dict[str, Any]]:
    """How often predictions of static decoding are final, by distance to the nearest anchor."""
    room = max(map(len, ground.prompts)) + ground.length + 64
    llm = load(ground.model, ground.method("static"), device=ground.model.runner.decoder.device, kv_tokens=room, prefix_cache=False)
    watch = Watch(llm.engine.denoiser.rule)
    llm.engine.denoiser = replace(llm.engine.denoiser, rule=watch)
    for prompt in ground.prompts:
        llm.generate([prompt], max_tokens=ground.length, ignore_eos=True)
    found = predictions(watch.seen, anchor)
    shares, bars = by_distance(found, FURTHEST), suggested(found, ERROR, FURTHEST)
    counts = [int((found.distance == distance).sum()) for distance in range(1, FURTHEST + 1)]
    columns = zip(range(1, FURTHEST + 1), counts, shares, bars, strict=True)
    return [
        {"model": ground.name, "distance": distance, "count": count, "final": share, "threshold": bar}
        for distance, count, share, bar in columns
        if count
    ]


def verdict(rows: list[dict[str, Any]]) -> str:
    """One sentence on LocalLeap's best lead."""
    ahead = [row for row in rows if row["family"] == "localleap" and row["lead"] is not None]
    if not ahead:
        return "no setting of LocalLeap takes a number of forwards between those of the thresholds"
    best = max(ahead, key=lambda row: row["lead_interval"][0])
    sure = sum(row["lead_interval"][0] > 0 for row in ahead)
    worse = sum(row["lead_interval"][1] < 0 for row in ahead)
    return (
        f"{rows[0]['model']}: of {len(ahead)} settings of LocalLeap, {sure} are measurably ahead of thresholds at equal forwards and "
        f"{worse} behind; best: {best['method']}, {best['lead']:+.4f} of the tokens"
    )


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(TOYS)} (trained here), or checkpoints, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    length: Annotated[int, typer.Option(help="tokens per answer of a checkpoint")] = 64,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    anchor: Annotated[float, typer.Option(help="probability of an anchor in the second table")] = 0.9,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model, 30 prompts, few settings")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=170)
    names, count = (["weak"], 30) if quick else (model.split(","), prompts)
    try:
        rows, reliable, verdicts = [], [], []
        for name in names:
            with console.status(f"preparing {name}"):
                ground = toy(name, count, seed) if name in TOYS else text(name, count, length, seed)
            rows.extend(own := rows_of(ground, batch, seed, quick, console))
            verdicts.append(verdict(own))
            reliable.extend(near(ground, anchor))
        console.print(render_table("per answer; 95 % bootstrap intervals over prompts", COLUMNS, rows))
        console.print(render_table(f"predictions that are final, by distance to the nearest anchor ({anchor})", NEAR, reliable))
        for sentence in verdicts:
            console.print(sentence)
        if json is not None:
            settings = {"models": names, "prompts": count, "batch": batch, "anchor": anchor}
            record = Record("localleap", rows, settings, {"seed": seed}, notes=verdicts, extra={"by_distance": reliable})
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

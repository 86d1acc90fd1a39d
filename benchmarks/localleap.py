"""LocalLeap against the frontier of plain thresholds: forwards and quality, and how reliable predictions are near sure ones.

    python benchmarks/localleap.py --json benchmarks/results             # both toy models, 100 prompts: about three minutes on one core
    python benchmarks/localleap.py --quick                               # weak model, 30 prompts, few settings: a minute
    python benchmarks/localleap.py --model pocket-dlm --prompts 60 --pictures docs/assets   # held-out problems, answers of 64 tokens

`lead` is the share of tokens that agree with static decoding, less that of plain threshold decoding at the same number of forwards
(interpolated between thresholds, prompt by prompt; 95 % bootstrap interval); `lead in right answers` the same for answers that are right.
Expected on the toy models, whose answers have no local structure: no lead. The second table asks what the method rests on: is a prediction
near a sure one more often final than one far away? From it a setting is suggested, which `paceline train localleap` does for any model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_grounds import TOYS, Ground, text, toy
from paceline.bench.denoising_rivals import COLUMNS, Rival, rival_rows, thresholds, verdicts
from paceline.bench.denoising_rivals_plot import plot_rivals
from paceline.bench.reliability import falls, reliability_rows, reliability_table
from paceline.bench.report import Record, public_name, render_table
from paceline.core.errors import PacelineError
from paceline.training.localleap import watch

FACTORS = (0.5, 1.0, 1.5)
PER_STEP = (2, 4, 8)
RADII = (1, 2, 4, 8)
RELAXED = (0.85, 0.75, 0.65, 0.5)
FURTHEST = 16
ERROR = 0.02


def rivals_of(quick: bool) -> list[Rival]:
    """What is compared."""
    radii, relaxed = ((4,), (0.75, 0.5)) if quick else (RADII, RELAXED)
    others = ("localleap:decay=true", "localleap:eos_anchor=false", "localleap:given_anchor=true")
    return [
        Rival("static", "static"),
        *(Rival("static", f"static:per_step={count}") for count in PER_STEP),
        *thresholds(quick),
        *(Rival("factor", f"factor:factor={factor}") for factor in (() if quick else FACTORS)),
        *(Rival("localleap", f"localleap:radius={radius},relaxed={bar}") for radius in radii for bar in relaxed),
        *(Rival("localleap", method) for method in (() if quick else others)),
    ]


def measure(ground: Ground, batch: int, anchor: float, seed: int, quick: bool, console: Console) -> tuple[list[dict[str, Any]], ...]:
    """Rows of both tables for one model."""
    with console.status(ground.name) as status:
        rows = rival_rows(
            ground, rivals_of(quick), batch, seed, lambda what, done, total: status.update(f"{what} ({done} of {total} methods)")
        )
        found = watch(
            ground.model, ground.prompts, ground.length, block=ground.block, anchor=anchor, batch=max(8, batch),
            report=lambda done: status.update(f"{ground.name}: watching static decoding ({done} of {len(ground.prompts)} prompts)"),
        )  # fmt: skip
    name = public_name(ground.name)
    return rows, [{"model": name, **row} for row in reliability_rows(found, ERROR, FURTHEST)]


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(TOYS)} (trained here), or checkpoints, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    length: Annotated[int, typer.Option(help="tokens per answer of a checkpoint")] = 64,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    anchor: Annotated[float, typer.Option(help="probability of an anchor in the second table")] = 0.9,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    quick: Annotated[bool, typer.Option(help="weak model, 30 prompts, few settings")] = False,
    pictures: Annotated[Path | None, typer.Option(help="folder for pictures of quality against forwards")] = None,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the tables, and write a record with --json."""
    console = Console(width=190)
    names, count = (["weak"], 30) if quick and model == "weak,good" else (model.split(","), 30 if quick else prompts)
    rows: list[dict[str, Any]] = []
    reliable: list[dict[str, Any]] = []
    told: list[str] = []
    try:
        for name in names:
            with console.status(f"preparing {name}"):
                ground = toy(name, count, seed) if name in TOYS else text(name, count, length, seed)
            own, near = measure(ground, batch, anchor, seed, quick, console)
            console.print(render_table("per answer; 95 % bootstrap intervals over prompts", COLUMNS, own))
            title = f"{near[0]['model']}: predictions that are final, by distance to the nearest anchor ({anchor}) and by confidence"
            console.print(reliability_table(f"{title}; suggested: lowest confidence for {ERROR:.0%} errors", near))
            sentences = [*verdicts(own, ["localleap", *([] if quick else ["factor"])]), f"{near[0]['model']}: {falls(near)}"]
            for sentence in sentences:
                console.print(sentence, soft_wrap=True)
            rows, reliable, told = rows + own, reliable + near, told + sentences
        if pictures is not None:
            for path in plot_rivals(rows, pictures, "localleap"):
                console.print(f"wrote {path}")
        if json is not None:
            settings = {"models": [public_name(name) for name in names], "prompts": count, "batch": batch, "anchor": anchor}
            record = Record("localleap", rows, settings, {"seed": seed}, notes=told, extra={"by_distance": reliable})
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

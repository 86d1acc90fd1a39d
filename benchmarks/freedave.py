"""FreeDave: forwards, tokens per forward, rows fed and time, and whether the tokens are those of the decoder drafted for.

    python benchmarks/freedave.py --json benchmarks/results      # both toy models, 100 prompts, float64: some ten minutes on one core
    python benchmarks/freedave.py --quick                        # weak model, 20 prompts, few rows: two minutes
    python benchmarks/freedave.py --model pocket-dlm --prompts 40  # held-out problems, answers of 64 tokens

Expected on the toy models (sort up to eight digits, 24 tokens, blocks of 8): identical in every row that promises it, about 15 forwards for
24 with 2 drafts, 11 with 4, 10 with 8. Rows fed rise, so that on hardware where rows cost time, time falls less than forwards, or not at
all. `sequential` spends a forward per draft: its forwards are not comparable and its rows are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_grounds import TOYS, Ground, text, toy
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, Record, render_table
from paceline.core import registry
from paceline.core.errors import PacelineError

DRAFTS = (1, 2, 4, 8)
CACHES = ("none", "prefix", "dual")
QUICK = [f"drafts={count}" for count in (2, 8)]
COLUMNS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("same as", "twin", numeric=False),
    Column("identical", lambda row: "" if row["same"] is None else f"{row['same']:.0%}"),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("fewer", lambda row: f"{row['fewer']:.2f}x"),
    Column("most", lambda row: "" if row["most"] is None else f"{row['most']:+d}"),
    Column("tokens/forward", lambda row: f"{row['advance']:.2f}"),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    Column("right", lambda row: f"{row['exact']:.2f}"),
    Column("agree", lambda row: f"{row['agree']:.3f}"),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
]


def methods_of(ground: Ground, quick: bool) -> list[str]:
    """What is measured on a ground, the block left out."""
    if quick:
        return [f"freedave:{options}" for options in QUICK]
    spec = ground.model.runner.decoder.config.diffusion
    caches = ("none",) if spec is not None and spec.block is not None else CACHES
    return [
        *(f"freedave:cache={cache},drafts={count}" for cache in caches for count in DRAFTS),
        *(f"freedave:drafts=4,mode={mode}" for mode in ("tree", "sequential")),
        *(f"freedave:drafts={count},eager=true" for count in (4, 8)),
        "freedave:drafts=4,per_step=2",
        *(f"freedave:drafts={count},threshold=0.9" for count in (1, 4)),
        "freedave:drafts=4,threshold=0.9,match=exact",
        "freedave:drafts=4,threshold=0.9,radius=4",
    ]


def rows_of(ground: Ground, batch: int, seed: int, quick: bool, console: Console) -> list[dict[str, Any]]:
    """One row per method; the decoders drafted for are measured once each."""
    runs: dict[str, Run] = {}

    def run(method: str) -> Run:
        if method not in runs:
            with console.status(f"{ground.name}: {method}"):
                runs[method] = run_method(ground.model, method, ground.prompts, ground.length, batch)
        return runs[method]

    reference = run(ground.method("static"))
    found = []
    for short in ["static", *methods_of(ground, quick)]:
        method = ground.method(short)
        mine = run(method)
        (choice,) = registry.parse(method)
        twin = getattr(choice.config(), "twin", None)
        plain = run(twin) if twin is not None else reference
        answers = [tokens if ground.right(index, tokens) else () for index, tokens in enumerate(mine.tokens)]
        same = [one == other for one, other in zip(mine.tokens, plain.tokens, strict=True)]
        more = [one - other for one, other in zip(mine.forwards, plain.forwards, strict=True)]
        row = row_of(mine, reference, answers, seed)
        own = {
            "model": ground.name,
            "twin": "" if twin is None else twin.partition(",block")[0],
            "same": None if twin is None else sum(same) / len(same),
            "most": None if twin is None else max(more),
            "fewer": sum(plain.forwards) / sum(mine.forwards),
            "advance": ground.length * len(mine.tokens) / sum(mine.forwards),
            "advances": dict(sorted(Counter(length for lengths in mine.runs for length in lengths).items())),
        }
        found.append(row | own)
    return found


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(TOYS)} (trained here), or checkpoints, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 100,
    length: Annotated[int, typer.Option(help="tokens per answer of a checkpoint")] = 64,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    single: Annotated[bool, typer.Option("--single", help="toy models in float32, where near-ties may differ between forwards")] = False,
    quick: Annotated[bool, typer.Option(help="weak model, 20 prompts, few rows")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the table, and write a record with --json."""
    console = Console(width=200)
    names, count = (["weak"], 20) if quick else (model.split(","), prompts)
    try:
        rows = []
        for name in names:
            with console.status(f"preparing {name}"):
                ground = toy(name, count, seed, double=not single) if name in TOYS else text(name, count, length, seed)
            rows.extend(rows_of(ground, batch, seed, quick, console))
        console.print(
            render_table("FreeDave, per answer; `most`: largest difference in forwards to the decoder drafted for", COLUMNS, rows)
        )
        for row in rows:
            if row["advances"].keys() - {1}:
                console.print(f"{row['model']} {row['method']}: forwards by tokens decided {row['advances']}", style="dim")
        if json is not None:
            settings = {"models": names, "prompts": count, "batch": batch, "double": not single}
            console.print(f"wrote {Record('freedave', rows, settings, {'seed': seed}).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

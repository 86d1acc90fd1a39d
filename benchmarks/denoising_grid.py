"""Every way of denoising: commit rules, caches and attention in all combinations that work together, at growing answers and batches.

    python benchmarks/denoising_grid.py --json benchmarks/results --pictures docs/assets          # two hours on one core
    python benchmarks/denoising_grid.py --lengths 64 --batches 1 --questions 4                     # one cell: two minutes
    python benchmarks/denoising_grid.py --drawn one.json --drawn other.json --pictures docs/assets # pictures of records

Checkpoints are asked held-out problems and held-out code, as in `dllm_base.py --model`: forwards, tokens per second and speed up to the
ends of text, answers identical to static decoding and edits away from it, problems solved, code that `ast.parse` reads, and its bits per
byte under an autoregressive model. Pictures draw each of these against speed; the last column of the table names the measures in which no
other way of that length and batch is as good and as fast. Ways that do not go together are named in the record's notes.

Expected: caches gain the more, the longer the canvas is; rules that decide several positions gain on top of them; SparseD gains nothing at
these lengths, for most of a forward is not attention.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from paceline.bench.denoising_pareto import plot_pareto
from paceline.bench.denoising_report import report_text
from paceline.bench.denoising_text import TextSettings, numbers
from paceline.bench.report import read_record
from paceline.core.errors import PacelineError

RULES = ("static", "static:algorithm=random", "threshold", "factor", "freedave", "localleap", "learn2pd")
CACHES = ("none", "prefix", "dual", "dkv-decode", "dkv-greedy")
ATTENTION = ("dense", "sparsed")
DENSITIES = (*(f"static:per_step={count}" for count in (2, 4, 8)), *(f"threshold:threshold={bar}" for bar in (0.95, 0.8, 0.6)))


def ways() -> list[str]:
    """All combinations, whether or not they go together, and settings of the two plainest rules that trade quality for speed."""
    found = []
    for rule, cache, attention in product(RULES, CACHES, ATTENTION):
        name, _, options = rule.partition(":")
        chosen = (options, f"cache={cache}" if cache != "none" else "", f"attention={attention}" if attention != "dense" else "")
        own = ",".join(filter(None, chosen))
        found.append(f"{name}:{own}" if own else name)
    return [*found, *DENSITIES]


def main(
    model: Annotated[str, typer.Option(help="checkpoints, separated by commas")] = "pocket-dlm,pocket-dlm-block",
    only: Annotated[str, typer.Option(help="static decoding, and ways that have this in their name")] = "",
    lengths: Annotated[str, typer.Option(help="most tokens of an answer")] = "64,128,256,512",
    batches: Annotated[str, typer.Option(help="answers decoded together")] = "1,8",
    questions: Annotated[int, typer.Option(help="half problems, half code")] = 8,
    rounds: Annotated[int, typer.Option(help="times that every way has its turn")] = 1,
    judge: Annotated[str, typer.Option(help="autoregressive model that judges code")] = "pocket-code",
    pictures: Annotated[Path | None, typer.Option(help="folder for pictures of quality against speed")] = None,
    drawn: Annotated[list[Path] | None, typer.Option(help="draw these records, all in one picture, and measure nothing")] = None,
    seed: Annotated[int, typer.Option(help="of problems and intervals")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the table, and write a record with --json after every length and batch."""
    console = Console(width=170)
    try:
        if drawn:
            rows = [row for path in drawn for row in read_record(path)["rows"]]
            name = f"denoising-grid-{Path(rows[0]['model']).name}"
            for path in plot_pareto(rows, pictures or Path(), name):
                console.print(f"wrote {path}", soft_wrap=True)
            return
        settings = TextSettings(numbers(lengths), numbers(batches), questions, rounds=rounds, seed=seed, judge=judge)
        first, *others = ways()
        chosen = [first, *(way for way in others if only in way)]
        report_text(console, model.split(","), chosen, settings, name="denoising-grid", json=json, pictures=pictures)
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

"""Milliseconds of a forward by number of rows and context length, beside the floor, transformers and llama.cpp.

    python benchmarks/forward_cost.py --json benchmarks/results     # everything: about half an hour on two cores
    python benchmarks/forward_cost.py --quick                       # one small model, a few cells: under a minute

Defaults: the pocket model and a random 110M Llama, fp32 and bf16, 1 to 64 rows behind 0 to 2048 tokens, contenders in turns. What to
expect: one bf16 row of the 110M shape within 1.6 times the floor, eight rows within 1.5 times one row and faster than llama.cpp.
Needs `pip install paceline[peers]` for llama.cpp; without it that column is left out. Run on a quiet machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from paceline.bench.forward_cost import CONTEXTS, DTYPES, MODELS, ROW_COUNTS, STANDARD, Plan, measure, table_columns, table_rows
from paceline.bench.report import render_table
from paceline.core.errors import PacelineError


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="pocket model, checkpoint folder, llama-110m or llama-6m (repeat for several)")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16 (repeat for several)")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="numbers of rows")] = None,
    context: Annotated[list[int] | None, typer.Option(help="context lengths")] = None,
    contender: Annotated[list[str] | None, typer.Option(help="paceline, paceline/exact, transformers, llama.cpp")] = None,
    rounds: Annotated[int, typer.Option(help="turns per contender")] = 3,
    repeats: Annotated[int, typer.Option(help="timed forwards per turn")] = 3,
    threads: Annotated[int, typer.Option(help="threads per contender; 0 takes all cores")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    quick: Annotated[bool, typer.Option(help="a small random model and few cells")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    import torch

    console = Console(width=160)
    try:
        plan = Plan(
            models=tuple(model or (["llama-6m"] if quick else MODELS)),
            dtypes=tuple(dtype or DTYPES),
            rows=tuple(rows or ([1, 4, 16] if quick else ROW_COUNTS)),
            contexts=tuple(context or ([0, 128] if quick else CONTEXTS)),
            contenders=tuple(contender or STANDARD),
            rounds=rounds,
            repeats=repeats,
            threads=threads or torch.get_num_threads(),
            device=device,
        )
        record = measure(plan, report=lambda line: console.print(f"measuring {line}", style="dim"))
        console.print(render_table("milliseconds of a forward (times the floor)", table_columns(record.rows), table_rows(record.rows)))
        for note in record.notes:
            console.print(note)
        if json is not None:
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

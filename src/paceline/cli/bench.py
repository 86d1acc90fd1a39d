"""`paceline bench`: methods side by side on real input, as a table, a record and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.cli import options
from paceline.cli.console import counted, out, print_json
from paceline.core.errors import UsageError

MEASURED = "What is measured"


def bench(
    model: options.Model,
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="A;B", help="Separated by `;`, or by `,` where none has options.", rich_help_panel=MEASURED),
    ] = "auto",
    draft: options.Draft = None,
    batching: options.Batching = "ragged",
    workloads: Annotated[
        str | None, typer.Option("--workloads", metavar="A,B", help="Default: the usual ones, best-of-8 too.", rich_help_panel=MEASURED)
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="1,8", help="Batch sizes.", rich_help_panel=MEASURED)] = "1,4,8,16",
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="A,B",
            help="What methods that remember text know when a round begins: cold (nothing), warm (answers to other prompts), "
            "replay (answers to the same prompts).",
            rich_help_panel=MEASURED,
        ),
    ] = "cold,warm",
    prompts: Annotated[int, typer.Option(min=1, help="Per workload.", rich_help_panel=MEASURED)] = 8,
    max_tokens: options.MaxTokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds; contenders take turns in each.", rich_help_panel=MEASURED)] = 5,
    peers: Annotated[
        bool, typer.Option(help="Measure transformers and llama.cpp on the same weights too.", rich_help_panel=MEASURED)
    ] = False,
    seed: Annotated[int, typer.Option(help="Of random prompts and sampling.", rich_help_panel=MEASURED)] = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    folder: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where bench.json and pictures go.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what bench.json in --out already holds.")] = False,
    json: options.Json = False,
) -> None:
    """Measure tokens per second and what they are made of. Speed-ups are ratios to plain decoding in the same round."""
    if resume and folder is None:
        raise UsageError("--resume continues the bench.json of an output folder; name it with --out")
    from paceline.bench.suite import BenchSettings, run_bench, split_methods, standard_peers

    settings = BenchSettings(
        methods=split_methods(methods),
        workloads=None if workloads is None else tuple(workloads.split(",")),
        batches=batch_sizes(batch),
        memories=tuple(memory.split(",")),  # type: ignore[arg-type]  # checked by the settings
        prompts=prompts,
        max_tokens=max_tokens,
        repeats=repeats,
        seed=seed,
        batching=batching,
    )
    with counted(silent=json) as report:
        record = run_bench(
            model,
            settings,
            draft=draft,
            dtype=dtype,
            device=device,
            peers=standard_peers(model, draft) if peers else (),
            out=None if folder is None else folder / "bench.json",
            resume=resume,
            on_progress=report,
        ).to_json()
    pictures = _pictures(record, folder)
    if json:
        print_json(record)
        return
    from paceline.bench.tables import bench_table

    console = out()
    console.print(bench_table(record, console.width))
    for note in record["notes"]:
        console.print(f"[dim]{note}[/dim]", soft_wrap=True)
    for path in pictures:
        console.print(f"wrote {path}", soft_wrap=True)


def batch_sizes(text: str) -> tuple[int, ...]:
    """`1,8` as numbers.

    Raises:
        UsageError: if it does not read so.
    """
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise UsageError(f"--batch {text!r} must be numbers separated by commas, as in 1,8") from None


def _pictures(record: dict[str, object], folder: Path | None) -> list[Path]:
    """Plots beside the record, where there is a folder and something to compare."""
    from paceline.bench.plots import plot_bench

    rows = record["rows"]
    compared = isinstance(rows, list) and any(row["method"] != "none" and "speedup" in row for row in rows)
    return plot_bench(record, folder, stem="bench") if folder is not None and compared else []

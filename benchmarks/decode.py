"""Tokens per second of every method on real input, beside plain decoding, transformers and llama.cpp on the same weights.

    python benchmarks/decode.py --json benchmarks/results     # everything: about six minutes on two cores
    python benchmarks/decode.py --quick                       # two workloads, few tokens: about a minute

Defaults: pocket-code with pocket-code-draft; completion, edit, structured, undraftable prompts and best-of-8; batch 1, 4, 8 and 16; three
rounds in which contenders take turns. Methods that remember text are measured from empty memory and, as `(warm)`, after answering other
prompts; a cell's `speedup` below 1 says where speculation stops paying. What to expect at batch 1, greedy completion: the best method at
least twice as fast as plain decoding, and `auto` about 3 % slower at most, even on text that cannot be drafted; differences so small
take many rounds, or the phase shares in the record. Run on a quiet machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from paceline.bench.plots import plot_bench
from paceline.bench.suite import BenchSettings, run_bench, split_methods, standard_peers
from paceline.bench.tables import bench_table
from paceline.core.errors import PacelineError

METHODS = "prompt-lookup,draft-model:length=2,lookahead,stand,auto"
WORKLOADS = "completion,edit,structured,undraftable,best-of-8"


def main(
    model: Annotated[str, typer.Argument(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    draft: Annotated[str, typer.Option(help="draft model; empty for none")] = "pocket-code-draft",
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    workloads: Annotated[str, typer.Option(help="separated by commas")] = WORKLOADS,
    batch: Annotated[str, typer.Option(help="batch sizes, separated by commas")] = "1,4,8,16",
    memory: Annotated[str, typer.Option(help="of methods that remember text: cold, warm, replay, separated by commas")] = "cold,warm",
    prompts: Annotated[int, typer.Option(help="per workload; rounded up to whole batches")] = 4,
    max_tokens: Annotated[int, typer.Option(help="per prompt")] = 96,
    repeats: Annotated[int, typer.Option(help="timed rounds")] = 3,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; by default what load chooses")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    peers: Annotated[bool, typer.Option(help="measure transformers and llama.cpp too")] = True,
    seed: Annotated[int, typer.Option(help="of random prompts and sampling")] = 0,
    quick: Annotated[bool, typer.Option(help="completion and undraftable text, 32 tokens, two rounds, no peers")] = False,
    resume: Annotated[bool, typer.Option(help="keep cells that the JSON already holds")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
    plots: Annotated[Path | None, typer.Option(help="folder for pictures")] = None,
) -> None:
    """Measure, print a table, and write a record with --json and pictures with --plots."""
    console = Console(width=180)
    try:
        settings = BenchSettings(
            methods=split_methods(methods),
            workloads=("completion", "undraftable") if quick else tuple(workloads.split(",")),
            batches=(1, 8) if quick else tuple(int(size) for size in batch.split(",")),
            memories=tuple(memory.split(",")),  # type: ignore[arg-type]  # checked by the settings
            prompts=prompts,
            max_tokens=32 if quick else max_tokens,
            repeats=2 if quick else repeats,
            seed=seed,
        )
        others = standard_peers(model, draft or None) if peers and not quick else []
        bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
        with bars:
            task = bars.add_task("loading", total=None)
            record = run_bench(
                model,
                settings,
                draft=draft or None,
                dtype=dtype,
                device=device,
                peers=others,
                out=json,
                resume=resume,
                on_progress=lambda label, done, total: bars.update(task, description=label, completed=done, total=total),
            )
        console.print(bench_table(record.to_json()))
        for note in record.notes:
            console.print(note, style="dim")
        if json is not None:
            console.print(f"wrote {record.write(json)}")
        if plots is not None:
            console.print("wrote " + ", ".join(str(path) for path in plot_bench(record.to_json(), plots)))
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

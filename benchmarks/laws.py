"""Laws and draws with the compiled kernels and without, by width of the vocabulary (docs/decisions/0017).

    python benchmarks/laws.py --json benchmarks/results      # about half a minute

Before every call a few megabytes are read, as a forward does: what sampling costs in a real step is mostly calls whose code and data have
left the cache. What to expect: a law with a nucleus several times faster with the kernels, and never one much slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from torch import Tensor

from paceline.bench.machine_clock import interleave
from paceline.bench.report import Column, Record, render_table
from paceline.core import transform
from paceline.core.sampling import Sampling
from paceline.kernels.laws import kernels

WIDTHS = (4096, 32_000, 128_000)
ROWS = (1, 8)
LAWS = {
    "temperature 1": Sampling(temperature=1.0),
    "temperature 0.6, top-p 0.95": Sampling(temperature=0.6, top_p=0.95),
    "top-k 50": Sampling(temperature=1.0, top_k=50),
    "min-p 0.05": Sampling(temperature=1.0, min_p=0.05),
}
READ = torch.ones(4 << 20)  # 16 MB: the weights of a small model


def sampled(logits: Tensor, sampling: Sampling, numbers: list[float]) -> float:
    """Seconds of a law and a draw from it, per row."""
    READ.sum()
    start = perf_counter()
    transform.draw(transform.target_distribution(logits, sampling), numbers)
    return perf_counter() - start


def plainly(call: Callable[[], float]) -> float:
    """The same where there are no kernels: functions on tensors do all the work."""
    with patch("paceline.core.transform.kernels", lambda: None):
        return call()


def measure(width: int, rows: int, name: str, rounds: int) -> dict[str, Any]:
    """Median microseconds both ways."""
    logits = 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    call = partial(sampled, logits, LAWS[name], [0.5] * rows)
    found = interleave({"kernels": call, "tensors": partial(plainly, call)}, rounds)
    times = {kind: 1e6 * timing.median for kind, timing in found.items()}
    return {"vocabulary": width, "rows": rows, "law": name, **times, "speedup": times["tensors"] / times["kernels"]}


def main(
    rounds: Annotated[int, typer.Option(help="timed calls of each kind")] = 100,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    console = Console(width=120)
    if kernels() is None:
        console.print("error: no C compiler on this machine, so there are no kernels to compare; install one", style="red")
        raise typer.Exit(1)
    with torch.inference_mode():
        rows = [measure(width, count, name, rounds) for width in WIDTHS for count in ROWS for name in LAWS]
    columns = [
        Column("vocabulary", "vocabulary"),
        Column("rows", "rows"),
        Column("law", "law", numeric=False),
        *(Column(name, lambda row, name=name: f"{row[name]:.0f}") for name in ("kernels", "tensors")),  # type: ignore[misc]
        Column("speed-up", lambda row: f"{row['speedup']:.1f}x"),
    ]
    console.print(render_table("microseconds of a law and a draw for all rows", columns, rows))
    if json is not None:
        console.print(f"wrote {Record('laws', rows, {'rounds': rounds, 'threads': torch.get_num_threads()}, {'logits': 0}).write(json)}")


if __name__ == "__main__":
    typer.run(main)

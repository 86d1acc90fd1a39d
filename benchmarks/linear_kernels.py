"""Compare the layouts that a linear layer's weight can have on this CPU (docs/decisions/0002), and check which keep a row's bits its own.

    python benchmarks/linear_kernels.py --json benchmarks/results      # about two minutes

Weights are cycled through 300 MB: large ones come from memory as they do in a large model; small ones stay in cache as they do in a small
one. What to expect: `panels`, paceline's own product, is never much behind the best other layout of its type, and ahead with few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from paceline.bench.machine_clock import interleave
from paceline.bench.report import Column, Record, render_table
from paceline.kernels.fused import Panels, fused
from paceline.models.linear import PACK_ROWS, can_pack

SHAPES = ((768, 256), (1408, 256), (256, 704), (4096, 256), (768, 768), (2304, 768), (4096, 768), (768, 2048), (32000, 768))
ROWS = (1, 2, 4, 8, 16, 64)
MOST = max(ROWS)
WORKING_SET = 300_000_000
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a weight is arranged, once, and multiplied by."""

    dtype: torch.dtype
    arrange: Callable[[Tensor], Any]
    product: Callable[[Tensor, Any], Tensor]
    exists: Callable[[torch.dtype], bool] = lambda dtype: True


def reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)


def reordered(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def panels(x: Tensor, weight: Panels) -> Tensor:
    kernels = fused(x.dtype, CPU)
    assert kernels is not None
    return kernels.product(x, weight)


def layouts() -> dict[str, Layout]:
    """The layouts that this machine can have, by name."""
    found = {"transposed fp32": Layout(torch.float32, lambda weight: weight.t().contiguous(), torch.matmul)}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"plain {name}"] = Layout(dtype, lambda weight: weight, F.linear)
        found[f"reordered {name}"] = Layout(dtype, reorder, reordered, lambda kind: can_pack(kind, CPU))
        found[f"panels {name}"] = Layout(dtype, lambda weight: Panels.of(weight, None), panels, lambda kind: fused(kind, CPU) is not None)
    return {name: layout for name, layout in found.items() if layout.exists(layout.dtype)}


def measure(shape: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """One row per layout: median microseconds by row count, and the row counts whose bits equal those of many rows."""
    outputs, inputs = shape
    found = layouts()
    weights: dict[str, list[Any]] = {}
    for name, layout in found.items():
        copies = 1 if outputs * inputs < 1 << 21 else max(2, WORKING_SET // (outputs * inputs * layout.dtype.itemsize))
        weights[name] = [layout.arrange(torch.randn(outputs, inputs, dtype=layout.dtype)) for _ in range(copies)]
    times: dict[str, dict[int, float]] = {name: {} for name in found}
    for rows in ROWS:
        turns = {name: _once(layout, cycle(weights[name]), rows, inputs) for name, layout in found.items()}
        for name, timing in interleave(turns, rounds).items():
            times[name][rows] = timing.median * 1e6
    result = []
    for name, layout in found.items():
        many, weight = torch.randn(MOST, inputs, dtype=layout.dtype), weights[name][0]
        whole = layout.product(many, weight)
        same = [rows for rows in ROWS if torch.equal(layout.product(many[:rows].contiguous(), weight), whole[:rows])]
        result.append({"outputs": outputs, "inputs": inputs, "layout": name, "microseconds": times[name], "row_independent": same})
    return result


def _once(layout: Layout, turn: cycle[Any], rows: int, inputs: int) -> Callable[[], float]:
    x = torch.randn(rows, inputs, dtype=layout.dtype)

    def call() -> float:
        weight = next(turn)
        start = perf_counter()
        layout.product(x, weight)
        return perf_counter() - start

    return call


def main(
    rounds: Annotated[int, typer.Option(help="timed products per layout and row count")] = 60,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    console = Console(width=140)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [row for shape in SHAPES for row in measure(shape, rounds)]
    columns = [
        Column("weight", lambda row: f"{row['outputs']}x{row['inputs']}", numeric=False),
        Column("layout", "layout", numeric=False),
        *(Column(str(count), lambda row, count=count: f"{row['microseconds'][count]:.0f}") for count in ROWS),  # type: ignore[misc]
        Column("same bits at", lambda row: " ".join(map(str, row["row_independent"])), numeric=False),
    ]
    console.print(render_table("microseconds of a product, by rows", columns, rows))
    record = Record("linear-kernels", rows, {"rounds": rounds, "threads": torch.get_num_threads()}, {"weights": 0})
    if json is not None:
        console.print(f"wrote {record.write(json)}")


if __name__ == "__main__":
    typer.run(main)

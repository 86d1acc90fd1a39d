"""Compare the weight layouts a linear layer can have on this CPU (docs/decisions/0002), and check which keep a row's bits independent.

Run: python benchmarks/linear_kernels.py [--json FILE]. Takes about a minute. Weights are cycled through 300 MB: large ones come from
memory as they do in a model; small ones stay in cache as they do in a small model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.models.linear import PACK_ROWS, can_pack

SHAPES = ((768, 256), (1408, 256), (256, 704), (4096, 256), (768, 768), (2304, 768), (4096, 768), (768, 2048), (32000, 768))
ROWS = (1, 2, 4, 8, 16)
WORKING_SET = 300_000_000


def reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)


def reordered(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


LAYOUTS: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "plain fp32": (torch.float32, lambda w: w, F.linear),
    "transposed fp32": (torch.float32, lambda w: w.t().contiguous(), torch.matmul),
    "reordered fp32": (torch.float32, reorder, reordered),
    "plain bf16": (torch.bfloat16, lambda w: w, F.linear),
    "reordered bf16": (torch.bfloat16, reorder, reordered),
}


def measure(shape: tuple[int, int], layout: str, repeats: int) -> dict[str, object]:
    """Median microseconds per row count, and the row counts whose bits equal those of 64 rows."""
    dtype, arrange, product = LAYOUTS[layout]
    outputs, inputs = shape
    copies = 1 if outputs * inputs < 1 << 21 else max(2, WORKING_SET // (outputs * inputs * dtype.itemsize))
    weights = [arrange(torch.randn(outputs, inputs, dtype=dtype)) for _ in range(copies)]
    times: dict[int, float] = {}
    for rows in ROWS:
        x = torch.randn(rows, inputs, dtype=dtype)
        turn = cycle(weights)
        laps = []
        for _ in range(repeats):
            weight = next(turn)
            start = perf_counter()
            product(x, weight)
            laps.append(perf_counter() - start)
        times[rows] = median(laps) * 1e6
    many = torch.randn(64, inputs, dtype=dtype)
    whole = product(many, weights[0])
    same = [rows for rows in (*ROWS, 32) if torch.equal(product(many[:rows].contiguous(), weights[0]), whole[:rows])]
    return {"shape": shape, "layout": layout, "microseconds": times, "row_independent": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    layouts = [name for name, (dtype, _, _) in LAYOUTS.items() if name.startswith("plain") or can_pack(dtype, torch.device("cpu"))]
    results = []
    with torch.inference_mode():
        for shape in SHAPES:
            for layout in layouts:
                record = measure(shape, layout, arguments.repeats)
                results.append(record)
                cells = "  ".join(f"{rows}: {time:8.0f}" for rows, time in record["microseconds"].items())
                print(f"{shape!s:>14} {layout:>16}  {cells}  same bits at {record['row_independent']}", flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()

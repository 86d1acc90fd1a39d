"""Judging a tree in one kernel call, beside the rules in Python on kernels for laws and draws (docs/decisions/0019).

    python benchmarks/verdicts.py --json benchmarks/results      # about half a minute

Before every call a few megabytes are read, as a forward does. What to expect: up to half less time at a vocabulary of 4,096, where calls
are what costs; at 128,000 work over the vocabulary decides, and the kernel saves that of rows that nobody reaches.
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

from paceline.bench.machine_clock import interleave
from paceline.bench.report import Column, Record, render_table
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.kernels.judging import judge
from paceline.verification.verifier import Verifier

WIDTHS = (4096, 32_000, 128_000)
READ = torch.ones(4 << 20)  # 16 MB: the weights of a small model
NUCLEUS = Sampling(temperature=0.6, top_p=0.95)
WIDE = TokenTree.from_paths(0, [[branch, *range(20, 27)] for branch in range(1, 8)])  # 57 nodes


def drawn() -> TokenTree:
    """A chain of eight tokens, each drawn from a law of ten."""
    laws = {node: Distribution((0.1,) * 10, tuple(range(10))) for node in range(8)}
    return TokenTree((0, *range(1, 9)), tuple(range(-1, 8)), Proposal(laws))


CASES: dict[str, tuple[TokenTree, Sampling]] = {
    "greedy, no draft": (TokenTree.chain(0), Sampling()),
    "greedy, 57 nodes": (WIDE, Sampling()),
    "sampled, no draft": (TokenTree.chain(0), NUCLEUS),
    "sampled, chain of 8, chosen": (TokenTree.chain(0, range(1, 9)), NUCLEUS),
    "sampled, chain of 8, drawn": (drawn(), NUCLEUS),
}


def judged(verifier: Verifier, sequence: Sequence, tree: TokenTree, logits: torch.Tensor) -> float:
    """Seconds of a verdict."""
    READ.sum()
    start = perf_counter()
    verifier.judge([sequence], [tree], logits)
    return perf_counter() - start


def interpreted(call: Callable[[], float]) -> float:
    """The same by the rules in Python."""
    with patch("paceline.verification.verifier.walked", lambda *given: {}):
        return call()


def measure(width: int, name: str, rounds: int) -> dict[str, Any]:
    """Median microseconds both ways. The first three tokens of chains are likely, those behind them are not."""
    tree, sampling = CASES[name]
    logits = 3 * torch.randn(len(tree), width, generator=torch.Generator().manual_seed(0))
    for node in range(min(3, len(tree) - 1)):
        logits[node, tree.token[node + 1]] += 30
    sequence = Sequence(0, Request((0,), sampling))
    call = partial(judged, Verifier(), sequence, tree, logits.bfloat16())
    found = interleave({"kernel": call, "rules": partial(interpreted, call)}, rounds)
    times = {kind: 1e6 * timing.median for kind, timing in found.items()}
    return {"vocabulary": width, "case": name, "nodes": len(tree), **times, "speedup": times["rules"] / times["kernel"]}


def main(
    rounds: Annotated[int, typer.Option(help="timed calls of each kind")] = 100,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print a table, and write a record with --json."""
    console = Console(width=120)
    if judge() is None:
        console.print("error: no C compiler on this machine, so there is no kernel to compare; install one", style="red")
        raise typer.Exit(1)
    rows = [measure(width, name, rounds) for width in WIDTHS for name in CASES]
    columns = [
        Column("vocabulary", "vocabulary"),
        Column("case", "case", numeric=False),
        *(Column(name, lambda row, name=name: f"{row[name]:.0f}") for name in ("kernel", "rules")),  # type: ignore[misc]
        Column("speed-up", lambda row: f"{row['speedup']:.1f}x"),
    ]
    console.print(render_table("microseconds of a verdict", columns, rows))
    if json is not None:
        record = Record("verdicts", rows, {"rounds": rounds, "threads": torch.get_num_threads()}, {"logits": 0})
        console.print(f"wrote {record.write(json)}")


if __name__ == "__main__":
    typer.run(main)

"""What Lookahead's drafts cost the host, in the loop: a draft of about 64 nodes beside the forward that judges it.

    python benchmarks/drafting_share.py pocket-code --json benchmarks/results      # about two minutes

Timed where drafts are made: behind a forward that has read all weights, with cold caches, whatever has to be done for it included. What to
expect: a few per cent of a forward of so many rows (decision 0020).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from paceline.bench.report import Column, Record, public_name, render_table
from paceline.bench.workloads import find_workloads
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.core.errors import PacelineError
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.drafting.base import DraftLimits
from paceline.engine.llm import LLM
from paceline.engine.load import load

WORKLOADS = "completion,edit,structured,long"
FULL = 60  # nodes of a draft that is counted, of 64


class Watch:
    """Times drafts and the forwards that judge them.

    Args:
        llm: with a drafter, for one sequence at a time.
    """

    def __init__(self, llm: LLM) -> None:
        self.drafts: list[float] = []
        self.forwards: list[float] = []
        self._propose, self._forward = llm.engine.drafter.propose, llm.runner.forward
        self._nodes, self._seconds = 0, 0.0
        llm.engine.drafter.propose = self.propose  # type: ignore[method-assign]  # this is what is watched
        llm.runner.forward = self.forward  # type: ignore[method-assign]  # likewise

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        begun = perf_counter()
        trees = self._propose(sequences, limits)
        self._seconds, self._nodes = perf_counter() - begun, len(trees[0])
        return trees

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        begun = perf_counter()
        result = self._forward(batch)
        seconds = perf_counter() - begun
        if batch.rows == self._nodes >= FULL:  # nothing else was read beside the tree
            self.drafts.append(self._seconds)
            self.forwards.append(seconds)
        return result


def measure(target: LLM, name: str, prompts: int, max_tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """Medians over the full drafts of one workload. The first round starts from an empty memory."""
    llm = load(target, "lookahead:budget=fixed,decoding_length=64", prefix_cache=False)
    (workload,) = find_workloads([name])
    ids = [list(prompt) for prompt in workload.prompts(prompts, llm.tokenizer, llm.vocabulary, llm.engine.context - max_tokens, seed)]
    watch = Watch(llm)
    for _ in range(rounds):
        for prompt in ids:
            llm.generate([prompt], max_tokens=max_tokens)
    if not watch.drafts:
        raise PacelineError(f"no draft of {FULL} nodes on {name}; ask for more --prompts")
    share = median(draft / forward for draft, forward in zip(watch.drafts, watch.forwards, strict=True))
    row = {"workload": name, "drafts": len(watch.drafts), "draft_microseconds": 1e6 * median(watch.drafts)}
    return row | {"forward_microseconds": 1e6 * median(watch.forwards), "share": share}


def main(
    model: Annotated[str, typer.Argument(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    workloads: Annotated[str, typer.Option(help="separated by commas")] = WORKLOADS,
    prompts: Annotated[int, typer.Option(help="per workload")] = 16,
    max_tokens: Annotated[int, typer.Option(help="per prompt")] = 96,
    rounds: Annotated[int, typer.Option(help="over all prompts")] = 2,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
    seed: Annotated[int, typer.Option(help="of prompts")] = 0,
) -> None:
    """Measure, print a table, and write a record with --json."""
    console = Console(width=120)
    try:
        target = load(model, "none", prefix_cache=False)
        rows = [measure(target, name, prompts, max_tokens, rounds, seed) for name in workloads.split(",")]
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(1) from None
    columns = [
        Column("workload", "workload", numeric=False),
        Column("drafts", "drafts"),
        Column("draft, us", lambda row: f"{row['draft_microseconds']:.0f}"),
        Column("forward, us", lambda row: f"{row['forward_microseconds']:.0f}"),
        Column("share", lambda row: f"{100 * row['share']:.1f} %"),
    ]
    console.print(render_table("drafting 64 nodes beside a forward of them", columns, rows))
    if json is not None:
        settings = {"model": public_name(model), "prompts": prompts, "max_tokens": max_tokens, "threads": torch.get_num_threads()}
        console.print(f"wrote {Record('drafting-share', rows, settings, {'prompts': seed}).write(json)}")


if __name__ == "__main__":
    typer.run(main)

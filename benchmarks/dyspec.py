"""DySpec against static trees: three synthetic regimes with the draft's calibration, and pocket models.

    python benchmarks/dyspec.py --json benchmarks/results              # everything: a quarter of an hour on two cores
    python benchmarks/dyspec.py --only regimes --tokens 4000           # synthetic sources alone: a few minutes, any machine
    python benchmarks/dyspec.py --quick                                # little of everything

Synthetic regimes (tokens per target call at 64 nodes): a calibrated draft of a near-deterministic target favours DySpec, then the
4-3-2-1 tree, then a chain; an over-confident draft turns DySpec below the fixed tree; a draft almost equal to a high-entropy target
favours the chain. `value=calibrated` beats plain DySpec in the last two. Pocket models: batch 1, greedy and at temperature 0.6; the
Sequoia-style tree is planned from acceptance measured on other prompts of the same kind, and printed as an option; under sampling the tree
of even branching is also filled with independent draws, as in SpecInfer. DySpec brings at least as many tokens per forward as the best
static tree of its size on held-out greedy completion; the row `best static` of each setting says which that is, and `dyspec` beside it by
how much. `law` counts 3-grams of sampled tokens, of plain sampling (`none`) and of both modes, against the target's law.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from paceline.bench.chains import TableRunner, simulate
from paceline.bench.regimes import calibration, compare, regimes
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.bench.trees import compare_trees, measure_acceptance, tree_methods
from paceline.bench.workloads import find_workloads
from paceline.core.errors import PacelineError
from paceline.core.sampling import Sampling
from paceline.drafting.base import Drafter
from paceline.drafting.dyspec import DySpec, DySpecConfig
from paceline.drafting.none import NoDraft
from paceline.engine.load import load

PARTS = ("regimes", "law", "pocket")
COLUMNS = [
    Column("setting", "setting", numeric=False),
    Column("method", "method", numeric=False),
    *(Column(name.replace("_", " "), name) for name in ("tokens_per_forward", "draft_forwards", "nodes", "speedup")),
    Column("dyspec / best static", "dyspec_over_best_static"),
]


def regime_rows(tokens: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the three regimes, and the draft's calibration in each."""
    rows, bins = [], {}
    for regime in regimes(seed):
        for method, outcome in compare(regime, tokens, seed).items():
            numbers = {
                "tokens_per_forward": outcome.tokens_per_call,
                "draft_forwards": outcome.draft_calls / outcome.target_calls,
                "nodes": outcome.nodes / outcome.target_calls,
            }
            rows.append({"part": "regimes", "setting": regime.name, "method": method, **numbers})
        bins[regime.name] = calibration(regime, tokens, seed)
    return rows, bins


def law_rows(tokens: int, seed: int, mixed: float = 0.1) -> list[dict[str, Any]]:
    """Chi-square of 3-grams given their first two tokens, in standard deviations above its mean, and their total variation; 8 token ids.

    `control` is the same text against the target's law with a share `mixed` of the draft's in it: a number that large would be a bias.
    """
    random = torch.Generator().manual_seed(seed)
    target = 0.6 * torch.randn(8, 8, 8, generator=random, dtype=torch.float64)
    draft = target + 0.5 * torch.randn(8, 8, 8, generator=random, dtype=torch.float64)
    law, rows = target.softmax(-1), []
    other = (1 - mixed) * law + mixed * draft.softmax(-1)
    for method in ("none", "threshold", "budget"):
        length = max(1, tokens // 500)
        drafter: Drafter = NoDraft() if method == "none" else DySpec(_law_config(method), TableRunner(draft), frozenset())
        output = simulate(target, drafter, Sampling(temperature=1.0, seed=seed), tokens=length, sequences=500).output
        text = torch.tensor([[0, 1, *sequence[:length]] for sequence in output])
        index = (text[:, :-2] * 64 + text[:, 1:-1] * 8 + text[:, 2:]).flatten()
        counts = torch.bincount(index, minlength=512).view(8, 8, 8).double()
        variation = float((counts - counts.sum(-1, keepdim=True) * law).abs().sum() / (2 * counts.sum()))
        found = {"deviations": _deviations(counts, law), "control": _deviations(counts, other), "variation": variation}
        rows.append({"part": "law", "setting": "8 ids", "method": method, "tokens": len(index), **found})
    return rows


def _law_config(mode: str) -> DySpecConfig:
    return DySpecConfig(budget=6, mode="budget" if mode == "budget" else "threshold")


def _deviations(counts: torch.Tensor, law: torch.Tensor) -> float:
    """Chi-square of counts against a law, over contexts that were seen often enough."""
    expected = counts.sum(-1, keepdim=True) * law
    usable = expected.amin(-1) >= 5
    freedom = max(1, int(usable.sum()) * (law.shape[-1] - 1))
    statistic = float(((counts - expected) ** 2 / expected.clamp(min=1e-9))[usable].sum())
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def pocket_rows(
    model: str,
    draft: str,
    workloads: str,
    temperatures: list[float],
    nodes: list[int],
    prompts: int,
    max_tokens: int,
    rounds: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the pocket models; half of the prompts measure acceptance, the other half judge."""
    target, helper, rows = load(model, "none"), load(draft, "none"), []
    for workload, temperature in product(find_workloads(workloads.split(",")), temperatures):
        ids = workload.prompts(2 * prompts, target.tokenizer, target.vocabulary, target.engine.context - max_tokens - 1, seed)
        sampling = Sampling(temperature=temperature, seed=seed)
        acceptance = measure_acceptance(target, helper, ids[:prompts], sampling, max_tokens)
        for size in nodes:
            methods = tree_methods(size, acceptance, sampled=not sampling.greedy)
            found = compare_trees(target, helper, methods, ids[prompts:], sampling, max_tokens, rounds)
            place = {"part": "pocket", "setting": f"{workload.name}, T={temperature:g}, {size} nodes"}
            rows += [place | row for row in [*found, best_static(found)]]
    return rows


def best_static(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The static tree (chain, even branching, or optimal) with the most tokens per forward, and DySpec's best in relation to it."""
    static = [row for row in rows if row["method"].startswith(("draft-model", "sequoia"))]
    best = max(static, key=lambda row: row["tokens_per_forward"])
    dynamic = max(row["tokens_per_forward"] for row in rows if row["method"].startswith("dyspec"))
    return best | {"method": f"best static: {best['method']}", "dyspec_over_best_static": dynamic / best["tokens_per_forward"]}


def main(
    only: Annotated[str, typer.Option(help=f"parts, separated by commas: {', '.join(PARTS)}")] = ",".join(PARTS),
    model: Annotated[str, typer.Option(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    draft: Annotated[str, typer.Option(help="draft model")] = "pocket-code-draft",
    workloads: Annotated[str, typer.Option(help="separated by commas")] = "completion,edit",
    temperatures: Annotated[str, typer.Option(help="of the target, separated by commas")] = "0,0.6",
    nodes: Annotated[list[int] | None, typer.Option(help="nodes per tree (repeat for several)")] = None,
    tokens: Annotated[int, typer.Option(help="per method and regime")] = 1000,
    prompts: Annotated[int, typer.Option(help="per workload")] = 4,
    max_tokens: Annotated[int, typer.Option(help="per prompt")] = 96,
    rounds: Annotated[int, typer.Option(help="timed rounds")] = 3,
    law_tokens: Annotated[int, typer.Option(help="tokens of the law check, per mode")] = 200_000,
    seed: Annotated[int, typer.Option(help="of sources and samples")] = 0,
    quick: Annotated[bool, typer.Option(help="8 nodes, one prompt per workload, 24 tokens, one round")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print tables, and write a record with --json."""
    console = Console(width=170)
    parts, sizes = only.split(","), nodes or ([8] if quick else [8, 16, 64])
    if quick:
        tokens, prompts, max_tokens, rounds, law_tokens = 100, 1, 24, 1, 5000
    rows: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    try:
        if "regimes" in parts:
            found, extra["calibration"] = regime_rows(tokens, seed)
            rows += found
        if "law" in parts:
            rows += law_rows(law_tokens, seed)
        if "pocket" in parts:
            rows += pocket_rows(
                model, draft, workloads, [float(one) for one in temperatures.split(",")], sizes, prompts, max_tokens, rounds, seed
            )
        console.print(render_table("tokens per target forward", COLUMNS, [row for row in rows if row["part"] != "law"]))
        for name, bins in extra.get("calibration", {}).items():
            shown = [Column(heading, heading) for heading in ("later", "from", "to", "offered", "acceptance")]
            console.print(render_table(f"acceptance by draft probability: {name}", shown, bins))
        for row in rows:
            if row["part"] == "law":
                figures = f"{row['deviations']:+.2f} standard deviations (control {row['control']:+.1f}), TV {row['variation']:.4f}"
                console.print(f"law, {row['method']}, {row['tokens']} tokens: {figures}")
        if json is not None:
            settings = {"tokens": tokens, "nodes": sizes, "prompts": prompts, "max_tokens": max_tokens, "rounds": rounds, "parts": parts}
            settings |= {"model": public_name(model), "draft": public_name(draft), "workloads": workloads, "temperatures": temperatures}
            settings["law_tokens"] = law_tokens
            console.print(f"wrote {Record('dyspec', rows, settings, {'seed': seed}, extra=extra).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

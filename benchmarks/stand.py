"""STAND where it matters: many samples of one prompt.

    python benchmarks/stand.py simulate --json benchmarks/results   # a random source instead of a model: two minutes
    python benchmarks/stand.py law                                  # 200,000 tokens against the source's law: a minute
    python benchmarks/stand.py samples --json benchmarks/results    # pocket-code, best of 8, beside other methods: five minutes
    python benchmarks/stand.py template --out tree.json             # measure a draft tree; use it with stand:template=tree.json

Each takes --quick, for a look at it. What to expect: tokens per step grow with the number of trajectories, and drawn drafts beat chosen
ones at the same table; `samples` shows the same on a model. Every method starts with empty memory in every round, and all draw the same
number of trajectories. Between the problems of a round, `stand` keeps nothing (scope=problem); `lookahead` keeps all outputs.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.machine import describe_machine, machine_slug
from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.bench.report import Column, Record, command_line, public_name, render_table
from paceline.bench.runner import Cell, MethodContender, draw_samples, run_cell, tokens_per_forward_by_trajectory
from paceline.bench.workloads import find_workloads
from paceline.core.errors import PacelineError
from paceline.core.sampling import Sampling
from paceline.drafting.base import memories
from paceline.drafting.stand import Stand
from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.template import Template, initial_template, optimise_template
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.loop import Engine, EngineConfig

METHODS = "none;lookahead;stand;stand:budget=fixed;stand:stochastic=false;stand:scope=request"
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(width=160)
Json = Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")]
Quick = Annotated[bool, typer.Option(help="little of everything, for a look at it")]
Seed = Annotated[int, typer.Option(help="of source, prompts and sampling")]


def full_template(*widths: int) -> Template:
    """Every node of depth d has `widths[d]` children."""
    levels = [product(*(range(width) for width in widths[:depth])) for depth in range(1, len(widths) + 1)]
    return Template(tuple(path for level in levels for path in level))


def report(record: Record, columns: list[Column], json: Path | None) -> None:
    """Print the rows, and write the record if asked to."""
    console.print(render_table(record.name, columns, record.rows))
    if json is not None:
        console.print(f"wrote {record.write(json)}")


@app.command()
def simulate(
    samples: Annotated[int, typer.Option(help="trajectories per source")] = 16,
    tokens: Annotated[int, typer.Option(help="per trajectory")] = 400,
    sources: Annotated[int, typer.Option(help="random sources")] = 5,
    quick: Quick = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Tokens per step of each trajectory on second-order sources with 40 tokens, 5 per context; tree 4-2-1-1-1."""
    if quick:
        samples, tokens, sources = 4, 100, 1
    rows: list[dict[str, Any]] = []
    for label, stochastic in (("drawn", True), ("chosen", False)):
        steps = [0] * samples
        for index in range(sources):
            source = MarkovSource.random(40, 5, seed=seed + index)
            drafter = Stand(StandConfig(stochastic=stochastic), template=full_template(4, 2, 1, 1, 1))
            for at, member in enumerate(trajectories(samples, tokens, Sampling(temperature=1.0), first_seed=seed + samples * index)):
                steps[at] += source.run(drafter, [member])
        rows.extend({"drafts": label, "trajectory": at + 1, "tokens_per_step": tokens * sources / taken} for at, taken in enumerate(steps))
    settings = {"samples": samples, "tokens": tokens, "sources": sources, "vocabulary": 40, "support": 5, "template": "4-2-1-1-1"}
    columns = [Column("drafts", "drafts", False), Column("trajectory", "trajectory"), Column("tokens per step", "tokens_per_step")]
    report(Record("stand-simulation", rows, settings, {"seed": seed}), columns, json)


@app.command()
def law(
    tokens: Annotated[int, typer.Option(help="per setting")] = 200_000,
    quick: Quick = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Chi-square of 3-grams from the whole drafting and judging loop against the law of the source."""
    if quick:
        tokens = 5000
    rows: list[dict[str, Any]] = []
    for name, config, sampling in (
        ("temperature 1", StandConfig(nodes=8), Sampling(temperature=1.0)),
        ("temperature 0.8, top-p 0.9", StandConfig(nodes=8), Sampling(temperature=0.8, top_p=0.9)),
        ("rejected nodes observed", StandConfig(nodes=8, observe_rejected=True), Sampling(temperature=1.0)),
    ):
        source = MarkovSource.random(8, 5, spread=1.2, seed=seed)
        members = trajectories(100, tokens // 100, sampling, first_seed=seed)
        steps = source.run(Stand(config), members)
        found = source.test(members)
        freedom = found.freedom
        rows.append(
            {"setting": name, "tokens_per_step": tokens / steps, "statistic": found.statistic, "freedom": freedom, "p": found.p_value}
        )
    columns = [Column("setting", "setting", False), *(Column(name, name) for name in ("tokens_per_step", "statistic", "freedom", "p"))]
    report(Record("stand-law", rows, {"tokens": tokens}, {"seed": seed}), columns, json)


@app.command()
def samples(
    model: Annotated[str, typer.Argument(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    methods: Annotated[str, typer.Option(help="separated by semicolons")] = METHODS,
    workloads: Annotated[str, typer.Option(help="separated by commas")] = "best-of-8",
    batch: Annotated[str, typer.Option(help="trajectories decoded together, separated by commas")] = "1,8",
    prompts: Annotated[int, typer.Option(help="per workload")] = 4,
    max_tokens: Annotated[int, typer.Option(help="per trajectory")] = 96,
    repeats: Annotated[int, typer.Option(help="timed rounds")] = 3,
    quick: Quick = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Speed of every method on many samples of each prompt, from empty memory."""
    if quick:
        prompts, max_tokens, repeats = 1, 24, 1
    weights = load(model, "none", prefix_cache=False)
    rows: list[dict[str, Any]] = []
    for workload in find_workloads(workloads.split(",")):
        ids = _prompts(weights, workload.prompts, prompts, max_tokens, seed)
        engines = {name: load(weights, name, prefix_cache=False) for name in methods.split(";")}
        contenders = [MethodContender(name, llm) for name, llm in engines.items()]
        for size in map(int, batch.split(",")):
            cell = Cell(workload.name, ids, workload.sampling, max_tokens, size, repeats, samples=workload.samples, coupled=False)
            rows.extend(run_cell(cell, contenders))
        for name, llm in engines.items():
            for part in memories(llm.engine.drafter):
                part.forget()
            groups = [draw_samples(llm, prompt, workload.sampling, max_tokens, workload.samples, 1) for prompt in ids]
            speeds = tokens_per_forward_by_trajectory(groups)
            rows.append({"workload": workload.name, "batch": 1, "method": name, "by_trajectory": speeds})
    names = ("batch", "tokens_per_second", "speedup", "tokens_per_forward")
    columns = [Column("workload", "workload", False), Column("method", "method", False), *(Column(name, name) for name in names)]
    columns.append(Column("tokens per forward by trajectory", lambda row: " ".join(f"{x:.2f}" for x in row.get("by_trajectory", ()))))
    settings = {"model": Path(model).name, "methods": methods, "prompts": prompts, "max_tokens": max_tokens, "repeats": repeats}
    report(Record("stand-samples", rows, settings, {"seed": seed}), columns, json)


@app.command()
def template(
    model: Annotated[str, typer.Argument(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    size: Annotated[int, typer.Option(help="nodes to keep")] = 80,
    prompts: Annotated[int, typer.Option(help="held-out files")] = 20,
    trajectory_count: Annotated[int, typer.Option("--samples", help="trajectories per file")] = 4,
    max_tokens: Annotated[int, typer.Option(help="per trajectory")] = 96,
    initial: Annotated[int, typer.Option(help="nodes of the tree that is drafted with")] = 625,
    skip: Annotated[int, typer.Option(help="held-out files left out: those that benchmarks are run on")] = 32,
    out: Annotated[Path, typer.Option(help="template file to write")] = Path("stand-template.json"),
    quick: Quick = False,
    seed: Seed = 0,
) -> None:
    """Draft with a large tree, count accepted nodes, keep the most accepted."""
    if quick:
        prompts, trajectory_count, max_tokens = 1, 2, 24
    (workload,) = find_workloads(["best-of-4"])
    start = initial_template(initial)
    weights = load(model, "none", prefix_cache=False)
    drafter = Stand(StandConfig(record=True, nodes=len(start)), weights.engine.eos, start)
    engine = Engine(weights.runner, drafter, weights.engine.detokenizer, EngineConfig(max_draft=len(start)))
    llm = LLM(engine, weights.tokenizer, weights.ledger, weights.name, "stand")
    for prompt in _prompts(llm, workload.prompts, skip + prompts, max_tokens, seed)[skip:]:
        draw_samples(llm, prompt, workload.sampling, max_tokens, trajectory_count, 1)
    measured = optimise_template(drafter.traces, size)
    taken = {"model": public_name(model), "device": machine_slug(describe_machine()), "steps": len(drafter.traces)}
    measured.save(out, taken | {"command": command_line()})
    console.print(f"{len(drafter.traces)} steps, {len(measured)} nodes, depth {measured.depth}; wrote {out}")


def _prompts(llm: LLM, make: Any, count: int, max_tokens: int, seed: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = make(count, llm.tokenizer, llm.vocabulary, llm.engine.context - max_tokens, seed)
    return found


if __name__ == "__main__":
    try:
        app(standalone_mode=False)
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise SystemExit(error.exit_code) from None

"""`paceline train`: make the small networks that some methods decode with, and choose what others are set to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from paceline.cli import options
from paceline.cli.console import counted, out, print_json
from paceline.cli.guard import GuardedGroup

if TYPE_CHECKING:
    from paceline.engine.llm import LLM

app = typer.Typer(cls=GuardedGroup, help="Train what methods need.", no_args_is_help=False)

TRACES = "Traces"
NETWORK = "Network"


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Train what methods need."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("learn2pd")
def learn2pd(
    model: options.Model,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the filter goes. Default: beside the model, where decoding looks for it."),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per block; the filter serves no other. Default: the model's, or 32.", rich_help_panel=TRACES),
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of every answer.", rich_help_panel=TRACES)] = 256,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One prompt per line, or JSON lines. Default: problems and library code.", rich_help_panel=TRACES
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=3, help="Prompts, where no file is given.", rich_help_panel=TRACES)] = 200,
    feature: Annotated[
        str, typer.Option(metavar="probability|entropy", help="What the filter sees of a position.", rich_help_panel=TRACES)
    ] = "probability",
    batch: Annotated[int, typer.Option(min=1, help="Answers decoded together.", rich_help_panel=TRACES)] = 8,
    work_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keeps the traces. Default: the user's cache folder.", rich_help_panel=TRACES)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Use traces that are there.", rich_help_panel=TRACES)] = True,
    iterations: Annotated[int, typer.Option(min=0, help="Training steps, each over all records.", rich_help_panel=NETWORK)] = 3000,
    layers: Annotated[int, typer.Option(min=1, help="Linear layers.", rich_help_panel=NETWORK)] = 2,
    loss_on: Annotated[str, typer.Option(metavar="all|masked", help="Positions that count.", rich_help_panel=NETWORK)] = "all",
    target: Annotated[
        float, typer.Option(help="Share of wrong tokens among accepted ones that the threshold may leave.", rich_help_panel=NETWORK)
    ] = 0.02,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Train the filter of `learn2pd` on the model's own answers, for `--method learn2pd`."""
    from paceline.training.learn2pd import FilterJob, beside, train_filter, usual_block
    from paceline.training.learn2pd_fit import FitOptions

    fit = FitOptions(iterations, layers=layers, loss_on=cast(Any, loss_on), target=target, seed=seed)  # which checks names
    llm = options.open_model(model, "static", dtype=dtype, device=device)
    job = FilterJob(block or usual_block(llm), length, cast(Any, feature), batch, fit)
    file = out_file or beside(llm, job.block)
    ids = _asked(llm, model, prompts, count, seed)
    with counted(silent=json) as report:
        made = train_filter(llm, ids, job, file, work_dir, resume, report)
    facts = made.facts
    named = "" if out_file is None else f"filter={file}"
    wanted = ",".join(filter(None, (named, "" if job.block == usual_block(llm) else f"block={job.block}")))
    method = f"learn2pd:{wanted}" if wanted else "learn2pd"
    if json:
        head = {"file": str(file), "method": method, "model": facts.model, "block": facts.block, "threshold": facts.threshold}
        print_json({**head, **facts.training})
        return
    told, console = facts.training, out()
    test, plain = told["test"], told["scalar_threshold"]
    console.print(
        f"[bold]{file}[/bold]: {made.parameters:,} parameters, blocks of {facts.block}, threshold {facts.threshold:g}, "
        f"{told['records']:,} records of {told['prompts']} prompts ({told['positives']:.0%} final)"
    )
    console.print(
        f"oracle: {told['static_forwards'] / told['records']:.1f} times fewer forwards than static; validation loss "
        f"{told['loss']['validation']:.3f} (constant {told['loss_constant']:.3f}, position alone {told['loss_logistic']:.3f})"
    )
    console.print(
        f"held-out prompts: accepts {test['accepted']:.0%} of open positions per forward, {test['wrong']:.1%} of them wrong; "
        f"a plain threshold of the same target accepts {plain['accepted']:.0%}, {plain['wrong']:.1%} of them wrong"
    )
    console.print(f"decode with it: --method {method}", soft_wrap=True)


@app.command("localleap")
def localleap(
    model: options.Model,
    block: Annotated[int | None, typer.Option(min=1, help="Tokens per block. Default: the model's, or 32.", rich_help_panel=TRACES)] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of every answer.", rich_help_panel=TRACES)] = 64,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One prompt per line, or JSON lines. Default: problems and library code.", rich_help_panel=TRACES
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts, where no file is given.", rich_help_panel=TRACES)] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Answers decoded together.", rich_help_panel=TRACES)] = 8,
    anchor: Annotated[float, typer.Option(help="Probability that makes a position an anchor.")] = 0.9,
    target: Annotated[float, typer.Option(help="Share of tokens decided near anchors that may change later.")] = 0.02,
    furthest: Annotated[int, typer.Option(min=1, help="Largest distance to an anchor that is looked at.")] = 16,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Choose radius and relaxed threshold of `localleap`: how often is a prediction final, by confidence and distance to an anchor?"""
    from paceline.bench.reliability import falls, reliability_rows, reliability_table
    from paceline.denoising.localleap_calibration import best_setting
    from paceline.training.localleap import watch

    llm = options.open_model(model, "static", dtype=dtype, device=device)
    ids = _asked(llm, model, prompts, count, seed)
    with counted(silent=json) as report:
        found = watch(
            llm, ids, length, block=block, anchor=anchor, batch=batch,
            report=None if report is None else lambda done: report("decoding statically", done, len(ids)),
        )  # fmt: skip
    rows, best = reliability_rows(found, target, furthest), best_setting(found, anchor, target, furthest)
    options_of = "" if best is None else f"localleap:threshold={anchor:g},radius={best.radius},relaxed={best.relaxed:.3f}"
    if json:
        print_json({"prompts": len(ids), "anchor": anchor, "target": target, "method": options_of or None, "distances": rows})
        return
    title = f"share of predictions that are final, by distance to the nearest anchor ({anchor:g}) and by confidence"
    out().print(reliability_table(f"{title}; suggested: lowest confidence for {target:.1%} errors", rows))
    out().print(falls(rows), soft_wrap=True)
    if best is None:
        out().print(f"no threshold below {anchor:g} keeps the share of changing tokens under {target:.1%}: use --method threshold")
        return
    out().print(
        f"suggested: --method {options_of}   ({best.count:,} predictions up to {best.radius} positions from an anchor reach the relaxed "
        f"threshold, {best.wrong:.1%} of them changed later)",
        soft_wrap=True,
    )


def _asked(llm: LLM, name: str, prompts: Path | None, count: int, seed: int) -> list[tuple[int, ...]]:
    """Ids of the prompts of a file, or of generated ones."""
    from paceline.core.errors import UsageError
    from paceline.training.learn2pd import default_prompts, read_prompts

    if llm.tokenizer is None:
        raise UsageError(f"{name} has no tokenizer to write prompts with")
    texts = default_prompts(count, seed) if prompts is None else read_prompts(prompts)
    return [llm.request(text).ids for text in texts]

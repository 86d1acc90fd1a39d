"""`paceline train`: make the small networks that some methods decode with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from paceline.cli import options
from paceline.cli.console import counted, out, print_json
from paceline.cli.guard import GuardedGroup

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
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the filter goes.", show_default=False)],
    block: Annotated[int, typer.Option(min=1, help="Tokens per block; the filter serves no other.", rich_help_panel=TRACES)] = 32,
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
    """Train the filter of `learn2pd` on the model's own answers. Decode with it by `--method learn2pd:filter=FILE,block=...`."""
    from paceline.core.errors import UsageError
    from paceline.training.learn2pd import FilterJob, default_prompts, read_prompts, train_filter
    from paceline.training.learn2pd_fit import FitOptions

    fit = FitOptions(iterations, layers=layers, loss_on=cast(Any, loss_on), target=target, seed=seed)  # which checks names
    job = FilterJob(block, length, cast(Any, feature), batch, fit)
    llm = options.open_model(model, "static", dtype=dtype, device=device)
    if llm.tokenizer is None:
        raise UsageError(f"{model} has no tokenizer to write prompts with")
    texts = default_prompts(count, seed) if prompts is None else read_prompts(prompts)
    ids = [llm.request(text).ids for text in texts]
    with counted(silent=json) as report:
        made = train_filter(llm, ids, job, out_file, work_dir, resume, report)
    facts = made.facts
    if json:
        print_json({"file": str(out_file), "model": facts.model, "block": facts.block, "threshold": facts.threshold, **facts.training})
        return
    told, console = facts.training, out()
    test, plain = told["test"], told["scalar_threshold"]
    console.print(
        f"[bold]{out_file}[/bold]: {made.parameters:,} parameters, blocks of {facts.block}, threshold {facts.threshold:g}, "
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

"""`paceline zoo`: make the pocket models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli import options
from paceline.cli.console import err, out, print_json
from paceline.cli.guard import GuardedGroup

app = typer.Typer(cls=GuardedGroup, help="Make the pocket models.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Make the pocket models."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("build")
def build(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which; all of them when none is named.")] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where finished models go. Default: the package's own folder.")
    ] = None,
    work_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Checkpoints and metrics. Default: the user's cache folder.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Limit for all training together. Default: token budgets alone.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Continue from checkpoints in the work folder.")] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="Micro models in seconds, to try the pipeline; their text is noise.")] = False,
    json: options.Json = False,
) -> None:
    """Train pocket models on the Python standard library that came with this interpreter. Resumable."""
    from paceline.zoo.build import build as build_models

    cards = build_models(
        names or None, work_dir=work_dir, max_minutes=max_minutes, device=device, resume=resume, progress=err().is_terminal and not json,
        smoke_size=smoke, out=out_folder,
    )  # fmt: skip
    if json:
        print_json([asdict(card) for card in cards])
        return
    console = out()
    for card in cards:
        console.print(
            f"[bold]{card.name}[/bold]: {card.parameters:,} parameters, {card.tokens:,} tokens in {card.seconds / 60:.0f} minutes "
            f"(ended by {card.ended_by}), {card.headline}"
        )

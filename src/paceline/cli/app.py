"""The command table: which file answers which command."""

from __future__ import annotations

from typing import Annotated

import typer

from paceline import __version__
from paceline.cli import audit, bench, chat, demo, generate, methods, models, train, warm, zoo
from paceline.cli.guard import GuardedGroup

app = typer.Typer(
    name="paceline",
    cls=GuardedGroup,
    help="Decode generative models faster, and show what was preserved.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paceline {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Decode generative models faster, and show what was preserved."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("audit")(audit.audit)
app.command("bench")(bench.bench)
app.command("warm")(warm.warm)
app.add_typer(zoo.app, name="zoo")
app.add_typer(train.app, name="train")

"""Starting up: nothing heavy is imported, help and version work, and wrong commands fail in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from paceline import __version__
from paceline.cli.app import app

COMMANDS = ("generate", "chat", "demo", "methods", "models", "audit", "bench", "warm", "zoo")
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "matplotlib", "huggingface_hub")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    code = "from paceline.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_importing_every_command_imports_nothing_heavy() -> None:
    code = f"import sys, paceline.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == "[]"


def test_help_in_a_process_lists_every_command() -> None:
    found = run("--help")
    assert found.returncode == 0
    assert all(command in found.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [(name,) for name in COMMANDS] + [("zoo", "build")])
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, [*command, "--help"])
    assert found.exit_code == 0
    assert "Usage:" in found.stdout


def test_no_command_shows_help() -> None:
    found = CliRunner().invoke(app, [])
    assert found.exit_code == 0
    assert "generate" in found.stdout


def test_version() -> None:
    found = CliRunner().invoke(app, ["--version"])
    assert (found.exit_code, found.stdout) == (0, f"paceline {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate"], "Missing argument 'MODEL'"),
        (["methods", "--jsn"], "No such option: --jsn"),
        (["generate", "m", "-p", "x", "--max-tokens", "0"], "--max-tokens"),
        (["zoo", "buidl"], "buidl"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert said in found.stderr

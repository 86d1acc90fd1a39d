"""The one place where errors become exit codes: one red line, no traceback unless `PACELINE_DEBUG=1`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from typer import Abort, TyperException
from typer.core import TyperGroup

from paceline.cli.console import err
from paceline.core.errors import PacelineError

INTERRUPTED = 130  # 128 + SIGINT, what shells report


def guarded(call: Callable[[], Any]) -> int:
    """Run a command and say what became of it.

    Returns:
        The exit code: 0, the code of a `PacelineError`, 2 for a usage error, 130 for Ctrl-C, 1 for anything else.
    """
    try:
        code = call()
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED
    except (PacelineError, TyperException) as error:
        if _debugging():
            raise
        say(error.format_message() if isinstance(error, TyperException) else str(error))
        return error.exit_code
    except Exception as error:
        if _debugging():
            raise
        say(f"unexpected {type(error).__name__}: {error} (PACELINE_DEBUG=1 shows where)")
        return 1
    return code if isinstance(code, int) else 0


def say(message: str) -> None:
    """Print an error as one line on standard error."""
    from rich.text import Text

    line = " ".join(message.split())
    err().print(Text(f"error: {line}", style="red"), soft_wrap=True)


class GuardedGroup(TyperGroup):
    """A command group whose errors go through `guarded`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; exits the process when `standalone_mode`, else returns the exit code."""
        run = super().main
        code = guarded(lambda: run(args, prog_name, complete_var, False, windows_expand_args, **extra))
        if standalone_mode:
            sys.exit(code)
        return code


def _debugging() -> bool:
    return os.environ.get("PACELINE_DEBUG", "") not in ("", "0")

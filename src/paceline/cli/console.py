"""Where text goes: results to standard output, everything said about them to standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LOG_WIDTH = 150  # characters of a line where the output is no terminal: logs scroll sideways, tables need not wrap


def out() -> Console:
    """A console on standard output; made per use, so that it follows a redirected stream."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


def err() -> Console:
    """A console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output; numbers that JSON has no word for become null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The same data with infinities and NaN replaced by `None`."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value


@contextmanager
def busy(message: str) -> Iterator[None]:
    """A spinner on standard error while the body runs; silent where nobody watches."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(message, spinner="dots"):
        yield


@contextmanager
def counted(silent: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error, as a callback taking (what is being done, steps done, steps in all).

    Args:
        silent: never show it. It is not shown either where nobody watches; the callback is then `None`.
    """
    console = err()
    if silent or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)

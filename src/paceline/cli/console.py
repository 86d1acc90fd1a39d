"""Where text goes: results to standard output, everything said about them to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def out() -> Console:
    """A console on standard output; made per use, so that it follows a redirected stream."""
    from rich.console import Console

    return Console(highlight=False)


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

"""Result records: JSON with everything needed to judge and repeat a measurement, written atomically, and tables of the same rows."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench.machine import describe_machine, machine_slug
from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1  # raised when a field changes meaning


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one benchmark.

    Args:
        name: of the benchmark, as in its file name.
        rows: the measurements, JSON-ready, one dict per table row.
        settings: the options the run was made with.
        seeds: every seed that influenced it.
        machine: from `describe_machine`.
        command: how to repeat it.
        date: UTC, ISO 8601.
        notes: caveats a reader must know, one sentence each.
        extra: anything else worth keeping (measured limits, certificates).
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=describe_machine)
    command: str = field(default_factory=lambda: command_line())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    notes: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in the file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "date": self.date,
            "command": self.command,
            "machine": dict(self.machine),
            "seeds": dict(self.seeds),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "rows": [dict(row) for row in self.rows],
            **({"extra": dict(self.extra)} if self.extra else {}),
        }

    def default_path(self, folder: Path) -> Path:
        """`<date>-<name>-<machine>.json` in `folder`."""
        return folder / f"{self.date[:10]}-{self.name}-{machine_slug(dict(self.machine))}.json"

    def write(self, path: Path) -> Path:
        """Write the record to `path` (or, if that is a folder, under its default name there) and return where it went."""
        target = self.default_path(path) if path.is_dir() else path
        write_json(target, self.to_json())
        return target


def command_line() -> str:
    """The command of this process with the interpreter and the folders cut off, so that it holds on any machine."""
    program = Path(sys.argv[0])
    name = f"python benchmarks/{program.name}" if program.parent.name == "benchmarks" else program.name
    return " ".join([name, *map(_portable, sys.argv[1:])])


def _portable(argument: str) -> str:
    """An argument with the folders of an absolute path left out."""
    option, equals, value = argument.partition("=") if argument.startswith("--") and "=" in argument else ("", "", argument)
    return option + equals + shlex.quote(Path(value).name if Path(value).is_absolute() else value)


def public_name(model: str) -> str:
    """A model's name for records that travel: the last folder of an absolute path, other names as they are."""
    return Path(model).name if Path(model).is_absolute() else model


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary file beside `path` and rename it, so that a reader never sees half a record.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another file") from error


def read_record(path: Path) -> dict[str, Any]:
    """A record written by `Record.write`.

    Raises:
        UsageError: if the file is missing, is not JSON, or is of another format.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not a readable result record ({error}); write one with --json") from error
    if found.get("format") != FORMAT:
        raise UsageError(f"{path} has format {found.get('format')!r}, this version reads {FORMAT}; measure again")
    return found


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: a heading, and how a row becomes the text of its cell.

    Args:
        heading: shown on top.
        text: cell text of a row, or the name of the field to show as it is (a missing one stays empty).
        numeric: flush right.
    """

    heading: str
    text: str | Callable[[Mapping[str, Any]], str]
    numeric: bool = True

    def cell(self, row: Mapping[str, Any]) -> str:
        """The text of this column in `row`."""
        if callable(self.text):
            return self.text(row)
        value = row.get(self.text)
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def render_table(title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a rich table, ready for `Console.print`."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.numeric else "left")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def markdown_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, for the README and the docs."""
    lines = [
        [column.heading for column in columns],
        ["--:" if column.numeric else "---" for column in columns],
        *([column.cell(row).replace("|", "\\|") for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

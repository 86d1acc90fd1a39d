"""Result records: complete, repeatable, written whole or not at all; tables show the rows."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from paceline.bench import report
from paceline.bench.report import Column, Record, markdown_table, read_record, render_table, write_json
from paceline.core.errors import UsageError

MACHINE = {"cpu": {"model": "Chip", "cores": 2}}
ROWS = [{"model": "small", "speed": 12.3456, "note": "a|b"}, {"model": "large", "speed": 4.0}]
COLUMNS = [
    Column("model", "model", numeric=False),
    Column("tokens/s", "speed"),
    Column("x2", lambda row: f"{2 * row['speed']:.1f}"),
    Column("note", "note"),
]


def test_record_says_what_where_and_how(tmp_path: Path) -> None:
    record = Record("sample", ROWS, {"rounds": 3}, {"weights": 0}, machine=MACHINE, command="python x.py", date="2030-01-02T03:04:05+00:00")
    path = record.write(tmp_path)
    assert path == tmp_path / "2030-01-02-sample-chip-2c.json"
    found = read_record(path)
    assert (found["name"], found["command"], found["seeds"], found["settings"]) == ("sample", "python x.py", {"weights": 0}, {"rounds": 3})
    assert found["rows"] == ROWS
    assert found["machine"] == MACHINE
    assert record.write(tmp_path / "own.json") == tmp_path / "own.json"


def test_record_describes_this_machine_by_itself() -> None:
    found = Record("sample", []).to_json()
    assert found["machine"]["packages"]["torch"]
    assert found["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            ["/somewhere/benchmarks/forward_cost.py", "--quick", "--json", "/home/me/out.json"],
            "python benchmarks/forward_cost.py --quick --json out.json",
        ),
        (["/env/bin/paceline", "bench", "--json=/home/me/my out.json", "a b"], "paceline bench --json='my out.json' 'a b'"),
    ],
)
def test_command_has_no_absolute_paths(monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert report.command_line() == command


def test_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"fine": 1})
    for bad in ({"broken": object()}, {"broken": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"fine": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_and_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{")
    with pytest.raises(UsageError, match="file"):
        write_json(tmp_path / "file" / "record.json", {})
    with pytest.raises(UsageError, match="not a readable result record"):
        read_record(tmp_path / "file")
    (tmp_path / "file").write_text('{"format": 0}')
    with pytest.raises(UsageError, match="format 0"):
        read_record(tmp_path / "file")


def test_tables_show_every_row() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(render_table("title", COLUMNS, ROWS))
    text = stream.getvalue()
    assert "title" in text
    assert all(part in text for part in ("small", "12.35", "24.7", "large", "8.0"))
    assert markdown_table(COLUMNS, ROWS).splitlines() == [
        "| model | tokens/s | x2 | note |",
        "| --- | --: | --: | --: |",
        r"| small | 12.35 | 24.7 | a\|b |",
        "| large | 4 | 8.0 |  |",
    ]

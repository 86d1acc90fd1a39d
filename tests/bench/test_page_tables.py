"""Tables that pages of the documentation take from records."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.bench.page_tables import table, with_tables
from paceline.bench.report import Record, write_json

ROWS = [
    {"model": "a", "method": "static", "forwards": 64.0, "right": 0.5, "identical": None},
    {"model": "a", "method": "freedave", "forwards": 28.25, "right": 0.5, "identical": 10},
    {"model": "b", "method": "static", "forwards": 128.0, "right": 0.125},
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for date, rows in (("2026-01-01", ROWS[:1]), ("2026-01-02", ROWS)):
        machine = {"cpu": {"model": "Some CPU"}}
        extra = {"speed": [{"tokens": 64, "seconds": 1.5}]}
        record = Record("freedave", rows, extra=extra, machine=machine, command="python benchmarks/freedave.py", date=f"{date}T00:00:00")
        write_json(tmp_path / f"{date}-freedave-text.json", record.to_json())
    return tmp_path


def test_rows_and_columns_that_were_asked_for(results: Path) -> None:
    found = table("freedave-text | model=a; method=static/freedave | method, forwards, right answers=right, identical", results)
    assert found.splitlines() == [
        "| method | forwards | right answers | identical |",
        "| --- | --: | --: | --: |",
        "| `static` | 64.00 | 0.500 |  |",
        "| `freedave` | 28.25 | 0.500 | 10 |",
        "",
        "`python benchmarks/freedave.py`, Some CPU, 2026-01-02; record `benchmarks/results/2026-01-02-freedave-text.json`.",
    ]
    assert "| 64 | 1.50 |" in table("freedave#speed | | tokens, seconds", results)
    assert "| 128 | 0.125 |" in table("freedave | model=b | forwards, right", results)


def test_only_what_stands_between_the_marks_is_rewritten(results: Path) -> None:
    mark = "<!-- table: freedave-text | model=b | method, forwards -->\n"
    page = f"before\n{mark}old\n<!-- table end -->\nafter\n"
    new = with_tables(page, results)
    assert new.startswith(f"before\n{mark}| method")
    assert new.endswith("<!-- table end -->\nafter\n")
    assert "old" not in new
    assert with_tables(new, results) == new


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("freedave-text | model=a", "record | conditions | columns"),
        ("none | | method", "no record"),
        ("freedave | model=c | method", "no row"),
    ],
)
def test_marks_that_lead_nowhere(results: Path, spec: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("|", "\\|")):
        table(spec, results)

"""Tables of measurements in pages of the documentation, made from checked-in records.

A page marks the place and says which rows and fields to show; the newest record of that name is taken:

    <!-- table: freedave-text | model=pocket-dlm | method, forwards, rows fed=rows -->
    <!-- table end -->

Between the bars: a part of the record's file name, with `#NAME` for rows that its `extra` holds under that name; values that fields of a
row must have (conditions separated by `;`, alternatives by `/`); columns, as a field, or as `heading=field`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.bench.report import Column, markdown_table, read_record

MARKED = re.compile(r"(<!-- table: (?P<spec>[^\n]*?) -->\n).*?(<!-- table end -->)", re.DOTALL)


def with_tables(page: str, results: Path) -> str:
    """The page with every marked table renewed.

    Args:
        page: Markdown.
        results: folder of the records.
    """
    return MARKED.sub(lambda found: found[1] + table(found["spec"], results) + found[3], page)


def table(spec: str, results: Path) -> str:
    """One table, and where it comes from.

    Raises:
        ValueError: for a mark that cannot be read, a record that is not there, or conditions that no row meets.
    """
    try:
        name, where, columns = (part.strip() for part in spec.split("|"))
    except ValueError:
        raise ValueError(f"<!-- table: {spec} -->: write record | conditions | columns") from None
    name, _, part = name.partition("#")
    files = sorted(results.glob(f"*-{name}*.json"))
    if not files:
        raise ValueError(f"<!-- table: {spec} -->: no record in benchmarks/results has {name!r} in its name")
    record = read_record(files[-1])
    rows = [row for row in (record["extra"][part] if part else record["rows"]) if _meets(row, where)]
    if not rows:
        raise ValueError(f"<!-- table: {spec} -->: no row of {files[-1].name} meets the conditions")
    shown = [_column(entry.strip(), rows[0]) for entry in columns.split(",")]
    machine = record["machine"]["cpu"]
    source = f"`{record['command']}`, {machine['model']}, {record['date'][:10]}; record `benchmarks/results/{files[-1].name}`."
    return f"{markdown_table(shown, rows)}\n{source}\n"


def _meets(row: Mapping[str, Any], where: str) -> bool:
    pairs = [condition.strip().partition("=") for condition in where.split(";") if condition.strip()]
    return all(str(row.get(key)) in wanted.split("/") for key, _, wanted in pairs)


def _column(entry: str, row: Mapping[str, Any]) -> Column:
    heading, _, key = entry.partition("=")
    field = key or heading
    return Column(heading, lambda each: _text(each.get(field)), numeric=not isinstance(row.get(field), str))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            return f"{value:.2g}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
    return "" if value is None else f"`{value}`" if isinstance(value, str) else str(value)

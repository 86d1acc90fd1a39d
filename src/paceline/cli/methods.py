"""`paceline methods`: the registry as a table."""

from __future__ import annotations

from typing import Any

from paceline.cli import options
from paceline.cli.console import out, print_json


def method_rows() -> list[dict[str, Any]]:
    """One JSON-ready row per method, in the registry's order."""
    from paceline.core.registry import METHODS

    return [
        {
            "name": method.name,
            "family": method.room,
            "summary": method.summary,
            "greedy": str(method.greedy),
            "sampling": str(method.sampling),
            "needs": method.needs,
            "trains": method.trains,
            "paper": method.paper,
        }
        for method in METHODS
    ]


def methods(json: options.Json = False) -> None:
    """List decoding methods: what they do, what they guarantee, what they need."""
    rows = method_rows()
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("method", "family", "greedy", "sampling", "needs training", "needs", "what it does", "paper"):
        table.add_column(heading, no_wrap=heading == "method", overflow="fold")
    for row in rows:
        table.add_row(
            f"[bold cyan]{row['name']}[/bold cyan]", row["family"], row["greedy"], row["sampling"], row["trains"] or "no",
            row["needs"] or "nothing", row["summary"], row["paper"],
        )  # fmt: skip
    out().print(table)

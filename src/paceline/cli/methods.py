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

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("what it does, and what it guarantees")
    for row in rows:
        table.add_row(f"[bold cyan]{row['name']}[/bold cyan]\n[dim]{row['family']}[/dim]", f"{row['summary']}\n[dim]{_facts(row)}[/dim]")
    out().print(table)


def _facts(row: dict[str, Any]) -> str:
    """Guarantee per mode, then what a user must bring, then where it is from."""
    needs = [f"needs a {row['needs']}"] if row["needs"] else []
    training = f"trains {row['trains']}" if row["trains"] else "no training"
    first = " · ".join([f"greedy: {row['greedy']}", f"sampling: {row['sampling']}", *needs, training])
    return f"{first}\n{row['paper']}" if row["paper"] else first

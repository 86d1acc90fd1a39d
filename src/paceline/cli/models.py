"""`paceline models`: pocket models of the package, and the architectures that checkpoints may have."""

from __future__ import annotations

from typing import Any

from paceline.cli import options
from paceline.cli.console import out, print_json

MEBIBYTE = 1 << 20


def model_rows() -> list[dict[str, Any]]:
    """One JSON-ready row per pocket model; `bytes` is `None` until it is built."""
    from paceline.zoo.registry import WEIGHTS, pocket_models

    return [
        {
            "name": model.name,
            "available": model.available,
            "bytes": (model.path / WEIGHTS).stat().st_size if model.available else None,
            "description": model.description,
        }
        for model in pocket_models().values()
    ]


def models(json: options.Json = False) -> None:
    """List pocket models and supported architectures."""
    from paceline.models.families import FAMILIES

    rows = model_rows()
    architectures = [{"architecture": family.architecture, "model_type": family.model_type} for family in FAMILIES]
    if json:
        print_json({"pocket": rows, "architectures": architectures})
        return
    from rich.table import Table

    table = Table(title="Pocket models", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in ("name", "size", "what it is"):
        table.add_column(heading)
    for row in rows:
        size = f"{row['bytes'] / MEBIBYTE:.1f} MiB" if row["available"] else f"not built: paceline zoo build {row['name']}"
        table.add_row(f"[bold cyan]{row['name']}[/bold cyan]", size, row["description"])
    console = out()
    console.print(table)
    console.print("\nAny local folder or Hub id with safetensors weights of one of these architectures works too:")
    console.print("  " + ", ".join(entry["architecture"] for entry in architectures))

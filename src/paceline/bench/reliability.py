"""How reliable predictions are near sure ones, as a table: one row per distance, one column per range of confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isnan
from typing import TYPE_CHECKING, Any

from paceline.denoising.localleap_calibration import BINS, Predictions, by_distance, consistency, suggested

if TYPE_CHECKING:
    from rich.table import Table


def reliability_rows(found: Predictions, target: float, furthest: int) -> list[dict[str, Any]]:
    """One JSON-ready row per distance that any prediction has.

    Args:
        found: predictions.
        target: share that may change, for the suggested thresholds.
        furthest: largest distance.
    """
    cells = consistency(found, furthest)
    shares, bars = by_distance(found, furthest), suggested(found, target, furthest)
    rows = []
    for distance in range(1, furthest + 1):
        mine = [cell for cell in cells if cell.distance == distance]
        if count := sum(cell.count for cell in mine):
            by_confidence = [
                {"from": cell.low, "to": cell.high, "count": cell.count, "final": None if isnan(cell.final) else cell.final}
                for cell in mine
            ]
            own = {"final": shares[distance - 1], "suggested": bars[distance - 1], "by_confidence": by_confidence}
            rows.append({"distance": distance, "count": count, **own})
    return rows


def reliability_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows, ready for `Console.print`; empty cells have no predictions."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("distance", "predictions", "final", *(f"{low:g}-{high:g}" for low, high in pairwise(BINS)), "suggested"):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = ["" if cell["final"] is None else f"{cell['final']:.3f}" for cell in row["by_confidence"]]
        table.add_row(str(row["distance"]), f"{row['count']:,}", f"{row['final']:.3f}", *shares, f"{row['suggested']:.3f}")
    return table


def falls(rows: Sequence[Mapping[str, Any]], within: int = 4) -> str:
    """A sentence on whether predictions near an anchor are final more often than those further away, weighted by their numbers."""
    groups = [[row for row in rows if near is (row["distance"] <= within)] for near in (True, False)]
    if not all(groups):
        return f"no predictions on both sides of distance {within} to an anchor: whether locality helps cannot be told"
    near, far = (sum(row["count"] * row["final"] for row in group) / sum(row["count"] for row in group) for group in groups)
    told = "falls with the distance, as LocalLeap expects" if near > far else "does not fall: locality offers nothing here"
    return f"predictions within {within} positions of an anchor are final in {near:.3f} of cases, further away in {far:.3f}; it {told}"

"""Quality against speed: which ways of decoding no other one beats in both, as marks on rows and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench.plots import save_picture
from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A800")  # after Okabe and Ito 2008
MARKERS = "osD^vP*X"


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to say how good answers are.

    Args:
        field: of a row; rows without a number there are left out.
        heading: of its axis.
        larger: whether more is better.
    """

    field: str
    heading: str
    larger: bool = True


MEASURES = (
    Measure("solved", "problems solved"),
    Measure("parses", "code that parses"),
    Measure("bits", "bits per byte\nunder the judge", larger=False),
    Measure("edit", "edits from the\nfirst method", larger=False),
)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one equals or beats in both numbers and beats in one; ascending in the first number.

    Args:
        points: pairs, larger being better in both.
    """
    return sorted(
        (
            index
            for index, (speed, worth) in enumerate(points)
            if not any(s >= speed and w >= worth and (s > speed or w > worth) for s, w in points)
        ),
        key=lambda index: points[index],
    )


def mark_unbeaten(rows: Sequence[dict[str, Any]], measures: Sequence[Measure] = MEASURES) -> None:
    """Write to every row, as `unbeaten`, in which measures no other row of its length and batch is as good and as fast."""
    for row in rows:
        row["unbeaten"] = []
    for measure in measures:
        for length, batch in dict.fromkeys((row["length"], row["batch"]) for row in rows):
            mine = [row for row in rows if (row["length"], row["batch"]) == (length, batch) and row[measure.field] is not None]
            sign = 1 if measure.larger else -1
            for at in front([(row["tokens_per_second"], sign * row[measure.field]) for row in mine]):
                mine[at]["unbeaten"].append(measure.field)


def plot_pareto(rows: Rows, folder: Path, stem: str, measures: Sequence[Measure] = MEASURES) -> list[Path]:
    """Write `STEM-pareto-batch-N.png` for every batch size: a panel per measure and answer length, tokens per second to the right.

    Args:
        rows: of `text_rows`.
        folder: made where it is missing.
        stem: how file names begin.
        measures: a row of panels each, if any row has a number for it.

    Raises:
        UsageError: if there is nothing to draw, or the folder cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = [measure for measure in measures if any(row[measure.field] is not None for row in rows)]
    if not drawn:
        raise UsageError("no row says how good its answers are; there is no frontier to draw")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles = {method: (COLOURS[at % len(COLOURS)], MARKERS[at // len(COLOURS) % len(MARKERS)]) for at, method in enumerate(methods)}
    lengths = sorted({row["length"] for row in rows})
    written = []
    for batch in sorted({row["batch"] for row in rows}):
        figure = Figure(figsize=(1.5 + 2.8 * len(lengths), 1.2 + 2.2 * len(drawn)), layout="constrained")
        panels = figure.subplots(len(drawn), len(lengths), squeeze=False, sharex="col", sharey="row")
        for measure, line in zip(drawn, panels, strict=True):
            for length, panel in zip(lengths, line, strict=True):
                mine = [row for row in rows if (row["batch"], row["length"]) == (batch, length) and row[measure.field] is not None]
                _panel(panel, mine, measure, styles)
            line[0].set_ylabel(measure.heading, fontsize=9)
            if not measure.larger:
                line[0].invert_yaxis()  # better is up everywhere; axes of a row are shared
        for length, top, bottom in zip(lengths, panels[0], panels[-1], strict=True):
            top.set_title(f"{length} tokens", fontsize=10)
            bottom.set_xlabel("tokens per second", fontsize=9)
        found = {label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.suptitle(f"{rows[0]['model']}, batch {batch}: quality against speed; the line joins what nothing beats", fontsize=10)
        written.append(save_picture(figure, folder / f"{stem}-pareto-batch-{batch}.png"))
    return written


def _panel(panel: Axes, rows: Rows, measure: Measure, styles: Mapping[str, tuple[str, str]]) -> None:
    points = [(row["tokens_per_second"], row[measure.field]) for row in rows]
    best = front([(speed, worth if measure.larger else -worth) for speed, worth in points])
    panel.plot([points[at][0] for at in best], [points[at][1] for at in best], "-", color="#BBBBBB", lw=1.2, zorder=1)
    for row, (speed, worth) in zip(rows, points, strict=True):
        colour, marker = styles[row["method"]]
        panel.plot([speed], [worth], marker, color=colour, ms=5.5, label=row["method"], zorder=2)
    panel.grid(color="#E5E5E5", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)

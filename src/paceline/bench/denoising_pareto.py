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
    from matplotlib.lines import Line2D

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A800")  # after Okabe and Ito 2008
MARKERS = "osD^vP*X"
DISTINCT = 24  # methods that a legend may list one by one


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
    styles = styles_of(list(dict.fromkeys(row["method"] for row in rows)))
    lengths = sorted({row["length"] for row in rows})
    written = []
    for batch in sorted({row["batch"] for row in rows}):
        figure = Figure(figsize=(max(6.5, 1.5 + 2.8 * len(lengths)), 1.2 + 2.2 * len(drawn)), layout="constrained")
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
        found = {label: style for style in styles.values() for label in style.labels}
        handles = [_handle(label, style) for label, style in found.items()]
        figure.legend(handles, found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.suptitle(f"{rows[0]['model']}, batch {batch}: quality against speed; the line joins what nothing beats", fontsize=10)
        written.append(save_picture(figure, folder / f"{stem}-pareto-batch-{batch}.png"))
    return written


@dataclass(frozen=True, slots=True)
class Style:
    """How a method's points look.

    Args:
        colour, marker: of all of them.
        hollow: drawn as an outline.
        labels: what the legend says about it; of several, each about one part of its looks: colour, marker, outline.
    """

    colour: str
    marker: str
    hollow: bool
    labels: tuple[str, ...]


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Looks of their own for a few methods; for many, a colour per rule and a marker per cache, hollow with sparse attention."""
    if len(methods) <= DISTINCT:
        looks = [(COLOURS[at % len(COLOURS)], MARKERS[at // len(COLOURS) % len(MARKERS)]) for at in range(len(methods))]
        return {method: Style(*look, False, (method,)) for method, look in zip(methods, looks, strict=True)}
    parts = {method: _parts(method) for method in methods}
    rules, caches = (list(dict.fromkeys(part[at] for part in parts.values())) for at in (0, 1))
    styles = {}
    for method, (rule, cache, sparse) in parts.items():
        colour, marker = COLOURS[rules.index(rule) % len(COLOURS)], MARKERS[caches.index(cache) % len(MARKERS)]
        styles[method] = Style(colour, marker, sparse, (rule, f"cache={cache}", *(["attention=sparsed"] if sparse else [])))
    return styles


def _parts(method: str) -> tuple[str, str, bool]:
    """Rule, cache, and whether attention is sparse."""
    rule, _, options = method.partition(":")
    given = dict(option.split("=", 1) for option in options.split(",") if option)
    return rule, given.get("cache", "none"), given.get("attention") == "sparsed"


def _handle(label: str, style: Style) -> Line2D:
    """A mark in the legend: of the method, or of the one part of its looks that the label is about."""
    from matplotlib.lines import Line2D

    about = style.labels.index(label) if len(style.labels) > 1 else None
    colour = style.colour if about in (None, 0) else "#444444"
    marker = style.marker if about in (None, 1) else "o"
    return Line2D([], [], linestyle="", marker=marker, color=colour, ms=5.5, markerfacecolor="none" if about == 2 else colour)


def _panel(panel: Axes, rows: Rows, measure: Measure, styles: Mapping[str, Style]) -> None:
    points = [(row["tokens_per_second"], row[measure.field]) for row in rows]
    best = front([(speed, worth if measure.larger else -worth) for speed, worth in points])
    panel.plot([points[at][0] for at in best], [points[at][1] for at in best], "-", color="#BBBBBB", lw=1.2, zorder=1)
    for row, (speed, worth) in zip(rows, points, strict=True):
        style = styles[row["method"]]
        face = "none" if style.hollow else style.colour
        panel.plot([speed], [worth], style.marker, color=style.colour, ms=5.5, markerfacecolor=face, zorder=2)
    panel.grid(color="#E5E5E5", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)

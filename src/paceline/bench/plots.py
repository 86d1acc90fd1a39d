"""Pictures of the decode benchmark: speed-up by workload and method, acceptance by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
# Distinguishable for colour-blind readers (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#F0E442")


def plot_bench(record: Mapping[str, Any], folder: Path, stem: str = "decode") -> list[Path]:
    """Write `STEM-speedup.png`, and `STEM-acceptance.png` if anything was drafted.

    Raises:
        UsageError: if the record holds no speed-up, or the folder cannot be written.
    """
    rows: Rows = record["rows"]
    timed = [row for row in rows if "speedup" in row and row["method"] != "none"]
    if not timed:
        raise UsageError("this record compares nothing with plain decoding; measure at least one method besides none")
    drafted = [row for row in rows if row["acceptance_by_depth"]]
    pictures = {f"{stem}-speedup.png": _speedups(timed, record["settings"])}
    if drafted:
        pictures[f"{stem}-acceptance.png"] = _acceptance(drafted)
    return [save_picture(figure, folder / name) for name, figure in pictures.items()]


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a picture, its folder made if need be, and return where it went.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another folder") from error
    return path


def _figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of panels. Made without pyplot, which keeps figures in a global list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, list(panels)


def _colours(rows: Rows) -> dict[str, str]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {method: COLOURS[at % len(COLOURS)] for at, method in enumerate(methods)}


def _speedups(rows: Rows, settings: Mapping[str, Any]) -> Figure:
    """Bars per workload and method, one panel per batch size; whiskers span the repeats."""
    batches = sorted({row["batch"] for row in rows})
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    colours = _colours(rows)
    figure, panels = _figure(len(batches), 2.0 + 1.1 * len(workloads) * len(batches), 3.8)
    bar = 0.8 / len(colours)
    for panel, batch in zip(panels, batches, strict=True):
        for index, (method, colour) in enumerate(colours.items()):
            mine = [row for row in rows if row["batch"] == batch and row["method"] == method]
            places = [workloads.index(row["workload"]) - 0.4 + bar * (index + 0.5) for row in mine]
            heights = [row["speedup"] for row in mine]
            whiskers = [
                [max(0.0, row["speedup"] - row["speedup_lowest"]) for row in mine],
                [max(0.0, row["speedup_highest"] - row["speedup"]) for row in mine],
            ]
            panel.bar(places, heights, bar * 0.92, color=colour, label=method, yerr=whiskers, error_kw={"lw": 0.8, "ecolor": "#444444"})
        panel.axhline(1.0, color="#222222", linewidth=0.9)
        panel.set_xticks(range(len(workloads)), workloads, rotation=20, ha="right")
        panel.set_title(f"batch {batch}", fontsize=10)
    panels[0].set_ylabel("speed-up over plain decoding")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(f"{settings['model']}, {settings['dtype']}", fontsize=11)
    return figure


def _acceptance(rows: Rows) -> Figure:
    """Share of steps that accept a node at each depth, one panel per workload, at the smallest batch size measured."""
    batch = min(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    colours = _colours(rows)
    from matplotlib.ticker import MaxNLocator

    figure, panels = _figure(len(workloads), 1.2 + 2.3 * len(workloads), 3.2)
    for panel, workload in zip(panels, workloads, strict=True):
        for row in rows:
            if row["workload"] == workload:
                depths = range(1, len(row["acceptance_by_depth"]) + 1)
                panel.plot(depths, row["acceptance_by_depth"], "o-", ms=3, color=colours[row["method"]], label=row["method"])
        panel.set_title(workload, fontsize=10)
        panel.set_xlabel("depth")
        panel.set_ylim(0, 1.02)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    panels[0].set_ylabel("accepted share")
    found = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(4, len(found)), frameon=False, fontsize=9)
    return figure

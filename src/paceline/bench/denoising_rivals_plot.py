"""A picture of commit rules: quality against forwards, the frontier of plain thresholds as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.bench.denoising_rivals import PLAIN
from paceline.bench.plots import COLOURS, save_picture

MEASURES = {"agree": "tokens of static decoding", "exact": "right answers"}


def plot_rivals(rows: Sequence[Mapping[str, Any]], folder: Path, stem: str) -> list[Path]:
    """Write `STEM-MODEL-frontier.png` for every model: a panel per measure, forwards per answer to the right.

    Args:
        rows: of `rival_rows`.
        folder: made where it is missing.
        stem: how file names begin.

    Raises:
        UsageError: if the folder cannot be written.
    """
    from matplotlib.figure import Figure

    families = [PLAIN, *dict.fromkeys(row["family"] for row in rows if row["family"] != PLAIN)]
    written = []
    for model in dict.fromkeys(row["model"] for row in rows):
        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(1, len(MEASURES))
        for panel, (field, heading) in zip(panels, MEASURES.items(), strict=True):
            for family, colour in zip(families, COLOURS, strict=False):
                mine = sorted((row["forwards"], row[field]) for row in rows if (row["model"], row["family"]) == (model, family))
                style = "o-" if family == PLAIN else "s"
                panel.plot([x for x, _ in mine], [y for _, y in mine], style, color=colour, ms=4, lw=1, label=family)
            panel.set_xlabel("forwards per answer")
            panel.set_ylabel(heading)
            panel.grid(color="#E5E5E5", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(families), frameon=False, fontsize=9)
        figure.suptitle(f"{Path(model).name}: quality against forwards", fontsize=11)
        written.append(save_picture(figure, folder / f"{stem}-{Path(model).name}-frontier.png"))
    return written

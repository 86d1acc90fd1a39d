"""The demo as a picture: speed per file, and a strip that shows how many tokens every forward made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.demo.palette import FAST, INK, MUTED, PLAIN, SHADES, shade_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from paceline.demo.result import Demo

ROW_INCHES = 0.62
FRAME_INCHES = 1.9
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.09), "frameon": False, "fontsize": 9, "labelcolor": INK}


def draw(demo: Demo, path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = len(demo.completions)
    figure = Figure(
        figsize=(12.5, FRAME_INCHES + ROW_INCHES * max(3, rows)),
        dpi=150,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.7))
    figure.suptitle(
        f"{demo.model}, {demo.method}: {demo.speed_up:.2f}x plain decoding, {demo.tokens_per_forward:.2f} tokens per forward, "
        f"{demo.identical} of {rows} outputs identical",
        x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK,
    )  # fmt: skip
    _bars(left, demo)
    _strips(right, demo)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(MUTED)
        axes.tick_params(axis="both", length=0, labelsize=9, labelcolor=INK)
    figure.savefig(path)


def _bars(axes: Axes, demo: Demo) -> None:
    places = range(len(demo.completions))
    plain = [entry.plain.stats.tokens_per_second for entry in demo.completions]
    fast = [entry.fast.stats.tokens_per_second for entry in demo.completions]
    axes.barh([place - 0.19 for place in places], plain, height=0.34, color=PLAIN, label="plain")
    axes.barh([place + 0.19 for place in places], fast, height=0.34, color=FAST, label=demo.method)
    for place, entry in enumerate(demo.completions):
        axes.text(fast[place], place + 0.19, f" {entry.speed_up:.2f}x", va="center", fontsize=9, color=INK)
    axes.set_yticks(list(places), [f"{entry.prompt.name}\nline {entry.prompt.line}" for entry in demo.completions])
    axes.set_xlim(0, 1.16 * max([*plain, *fast, 1e-9]))
    axes.invert_yaxis()
    axes.set_title("tokens per second", loc="left", fontsize=10, color=INK)
    axes.legend(ncols=2, **BELOW)


def _strips(axes: Axes, demo: Demo) -> None:
    """One segment per forward, as long as the tokens it made."""
    from matplotlib.patches import Patch

    for place, entry in enumerate(demo.completions):
        start = 0
        for run in entry.fast.runs:
            axes.barh(
                place, len(run.ids), left=start, height=0.62, color=SHADES[shade_of(len(run.ids))].light, edgecolor="white", linewidth=0.6
            )
            start += len(run.ids)
    axes.set_xlim(0, max((len(entry.fast.ids) for entry in demo.completions), default=1))
    axes.set_title(
        "output tokens, one segment per forward (plain decoding needs one forward per token)", loc="left", fontsize=10, color=INK
    )
    legend = [Patch(color=shade.light, label=shade.label) for shade in SHADES]
    axes.legend(handles=legend, title="tokens made by one forward", title_fontsize=9, ncols=len(SHADES), **BELOW)

"""A progress bar for training, on standard error: share of the schedule, cross-entropy and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[float, dict[str, float]], None]


@contextmanager
def training_display(name: str, enabled: bool = True) -> Iterator[Report]:
    """Yield a callback taking (share of the schedule, metrics of the step) that redraws the bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as bars:
        task = bars.add_task(f"training {name}", total=1.0, loss="")

        def report(share: float, metrics: dict[str, float]) -> None:
            bars.update(task, completed=share, loss=f"{metrics['cross_entropy']:.3f} nats/token")

        yield report

"""Options of the dense batching strategies."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class DenseOptions:
    """Options of every dense strategy.

    Args:
        batch: sequences that share a forward.
        reference_bonus: give away the target's own token behind a fully accepted draft, as the reference implementation does; for
            comparison only.
    """

    batch: int = 16
    reference_bonus: bool = False

    def __post_init__(self) -> None:
        _at_least("batch", self.batch, 1)


@dataclass(frozen=True, slots=True)
class GapOptions(DenseOptions):
    """Options of `gap`.

    Args:
        waste: largest share of masked columns before rows are compacted.
    """

    waste: float = 0.25

    def __post_init__(self) -> None:
        _at_least("batch", self.batch, 1)
        if not 0 <= self.waste < 1:
            raise UsageError(f"batching option waste={self.waste} must be in [0, 1)")


@dataclass(frozen=True, slots=True)
class PoolOptions(DenseOptions):
    """Options of `exspec`.

    Args:
        window: sequences that are under way at once, from which each batch is chosen; at least `batch`.
        grouping: form batches of sequences of equal length where possible; off, the first `batch` of the window always run.
        min_group: smallest group of equal length that runs without realignment; 0 means `batch`.
        max_wait: most batches in a row that may leave a sequence out, for bounded latency; 0 means no bound.
        sort: take waiting requests by prompt length instead of arrival. Outputs come back in the order asked all the same.
    """

    window: int = 48
    grouping: bool = True
    min_group: int = 0
    max_wait: int = 0
    sort: bool = False

    def __post_init__(self) -> None:
        _at_least("batch", self.batch, 1)
        _at_least("window", self.window, self.batch)
        _at_least("min_group", self.min_group, 0)
        _at_least("max_wait", self.max_wait, 0)

    @property
    def least_group(self) -> int:
        """Sequences of equal length that make a group."""
        return min(self.min_group, self.batch) or self.batch

    @property
    def active(self) -> int:
        """Sequences under way at once: with a bound on waiting, no more than can all get their turn within it."""
        return min(self.window, self.batch * (self.max_wait + 1)) if self.max_wait else self.window


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"batching option {name}={value} must be at least {least}")

"""The measured cost of a target forward as a function of its rows: probed once, then kept current by the steps themselves."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import accumulate
from time import perf_counter

from paceline.core.request import Sequence
from paceline.core.tree import TokenTree

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 128)
REFRESH = 32  # steps between two rebuilds of the interpolated table
WEIGHT = 0.05  # of a new observation, for all sizes
OWN_WEIGHT = 0.01  # and, beyond that, for its own size
DOUBTS = 3  # steps that took less than half of what was thought, until they are believed: disturbances only ever add time
PASSES = 2  # of probing: what disturbs the machine for a moment must not meet one size alone


class StepWatch:
    """Lets a cost model learn from the steps of the loop: a step lasts from its proposal to its verdict.

    Args:
        cost: of forwards.
    """

    def __init__(self, cost: ForwardCost) -> None:
        self.cost = cost
        self._rows = 0
        self._begun = 0.0

    def begin(self, sequences: Many[Sequence], trees: Many[TokenTree]) -> None:
        """The trees were proposed. A step that reads a prompt beside them says nothing of their rows."""
        fresh = any(len(sequence.tokens) == sequence.prompt_length for sequence in sequences)
        self._rows, self._begun = 0 if fresh else sum(map(len, trees)), perf_counter()

    def end(self, trees: Many[TokenTree]) -> None:
        """The trees were judged. Where somebody was preempted in between, nothing is learned."""
        if self._rows and self._rows == sum(map(len, trees)):
            self.cost.observe(self._rows, perf_counter() - self._begun)


class ForwardCost:
    """Seconds of a forward with n rows.

    Args:
        probe: measures a forward with n rows now; called twice per size, at the first question.
        sizes: row counts that are probed; between them the cost is interpolated, beyond them extrapolated by the last slope.
    """

    def __init__(self, probe: Callable[[int], float], sizes: tuple[int, ...] = SIZES) -> None:
        self._probe, self._sizes = probe, sizes
        self._seconds: list[float] = []
        self._table: array[float] = array("d")
        self._drift = 1.0  # what all sizes changed by since the table was built
        self._observed = 0
        self._doubts: list[tuple[int, float]] = []  # size and seconds of steps that were faster than thought possible

    def __call__(self, rows: int) -> float:
        """Seconds of a forward with `rows` rows."""
        if not self._table:
            self._measure()
        if rows < len(self._table):
            return self._table[rows]
        slope = self._table[-1] - self._table[-2]
        return self._table[-1] + slope * (rows - len(self._table) + 1)

    @property
    def table(self) -> array[float]:
        """Seconds by rows as far as they were measured, to be read until the next observation. Beyond, the last slope goes on."""
        if not self._table:
            self._measure()
        return self._table

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step that happened.

        Most of a deviation is the machine being faster or slower than when it was probed, which scales every size; a little of it is
        this size being different. An outlier (another process, a garbage collection) counts at most double. Steps much faster than is
        thought possible mean that probing was disturbed.
        """
        if not self._table:
            self._measure()
        deviation = min(seconds / (self(rows) * self._drift), 2.0) - 1
        self._drift *= 1 + WEIGHT * deviation
        place = min(bisect_left(self._sizes, rows), len(self._sizes) - 1)
        self._seconds[place] *= 1 + OWN_WEIGHT * deviation
        self._observed += 1
        if deviation < -0.5:
            self._doubts.append((place, seconds))
        if len(self._doubts) == DOUBTS:
            self._correct()
        if self._observed % REFRESH == 0:
            self._rebuild()

    def _correct(self) -> None:
        """Probing was disturbed. What steps took bounds their size and all smaller ones; larger ones were as much too slow, most likely.

        They are not probed again: somebody waits for tokens. Should they be dearer after all, their own steps will say so.
        """
        place, seconds = max(size for size, _ in self._doubts), max(taken for _, taken in self._doubts)
        self._settle()
        share = seconds / self._seconds[place]
        self._seconds = [min(known, seconds) if size <= place else known * share for size, known in enumerate(self._seconds)]
        self._doubts = []
        self._rebuild()

    def _measure(self) -> None:
        passes = [[self._probe(size) for size in self._sizes] for _ in range(PASSES)]
        probed = [min(seconds) for seconds in zip(*passes, strict=True)]
        # Interruptions only ever add time: what fewer rows took longer than more rows is noise.
        self._seconds = list(accumulate(reversed(probed), min))[::-1]
        self._rebuild()

    def _rebuild(self) -> None:
        """Interpolate. What is learned of a size holds for larger ones at least."""
        self._settle()
        self._seconds = list(accumulate(self._seconds, max))
        table = array("d", [0.0])
        for (low, high), (fast, slow) in zip(
            zip((0, *self._sizes), self._sizes, strict=False), zip((0.0, *self._seconds), self._seconds, strict=False), strict=True
        ):
            table.extend(fast + (slow - fast) * (n - low) / (high - low) for n in range(low + 1, high + 1))
        self._table = table

    def _settle(self) -> None:
        """Let every size take part in what was learned of all of them."""
        self._seconds, self._drift = [known * self._drift for known in self._seconds], 1.0

"""EXSPEC: a window of sequences under way; batches are formed of equal lengths where possible (arXiv 2510.22876, sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.core.request import Sequence
from paceline.memory.contract import TokenMemory
from paceline.scheduling.continuous import Active, SchedulerConfig, Turn
from paceline.scheduling.dense.fixed import FixedBatch
from paceline.scheduling.dense.options import PoolOptions


@dataclass(slots=True)
class Batches:
    """Batches formed so far.

    Args:
        grouped: of equal length, which need no realignment.
        fallback: the first of the window, realigned.
        skipped: most batches in a row that left out one sequence.
    """

    grouped: int = 0
    fallback: int = 0
    skipped: int = 0

    @property
    def group_rate(self) -> float:
        """Share of grouped batches; 0 before the first."""
        total = self.grouped + self.fallback
        return self.grouped / total if total else 0.0


class SequencePool(FixedBatch):
    """Chooses who shares the next forward.

    Lengths count content: padding is no part of a sequence. Whether a prompt has been read makes no difference, because prompts are read by
    forwards of their own before their batch decides.

    Args:
        memory, config, on_preempt: as for `Scheduler`; `config.max_sequences` bounds the window as well.
        options: see `PoolOptions`.
    """

    def __init__(self, memory: TokenMemory, config: SchedulerConfig, on_preempt: Callable[[Sequence], None], options: PoolOptions) -> None:
        super().__init__(memory, config, on_preempt)
        self.options = options
        self.batches = Batches()
        self._chosen: list[Active] = []
        self._waited: dict[int, int] = {}  # batches since a sequence of the window had its last turn, by uid

    def turns(self) -> list[Turn]:
        """Refill the window, choose a batch, read its prompts, then let it decide."""
        if self.options.sort:
            self.waiting.sort(key=lambda sequence: (-sequence.request.priority, sequence.prompt_length, sequence.uid))
        self._admit()
        self._chosen = [active for active in self._chosen if active in self.running] or self._choose()
        unread = [active for active in self._chosen if active.uncached > 1]
        if unread:  # a forward for prompts has room for others that will be read soon
            soon = [active for active in self.running if active.uncached > 1 and active not in unread]
            return self._shares([*unread, *soon[: self.options.batch - len(unread)]])
        chosen, self._chosen = self._chosen, []
        return self._shares(chosen)

    def _choose(self) -> list[Active]:
        """A group of equal length, else the first of the window, else (where somebody has waited long enough) those who waited longest."""
        if not self.running:
            return []
        group = self._group() if self.options.grouping else None
        chosen = group or self.running[: self.options.batch]
        if self.options.max_wait and not self._patient(chosen):
            group = None
            chosen = sorted(self.running, key=lambda active: -self._wait(active))[: self.options.batch]
        self.batches.grouped += group is not None
        self.batches.fallback += group is None
        left_out = {active.sequence.uid: self._wait(active) + 1 for active in self.running if active not in chosen}
        self._waited = left_out
        self.batches.skipped = max(self.batches.skipped, *left_out.values(), 0)
        return chosen

    def _group(self) -> list[Active] | None:
        """The first group that fills a batch; without one the largest that is large enough."""
        groups: dict[int, list[Active]] = {}
        for active in self.running:
            group = groups.setdefault(len(active.sequence.tokens), [])
            group.append(active)
            if len(group) == self.options.batch:
                return group
        largest = max(groups.values(), key=len)
        return largest if len(largest) >= self.options.least_group else None

    def _patient(self, chosen: list[Active]) -> bool:
        """Whether everybody left out can still have a turn in time, if those who waited longest go first from then on."""
        slack = sorted(self.options.max_wait - self._wait(active) - 1 for active in self.running if active not in chosen)
        return all(left >= at // self.options.batch for at, left in enumerate(slack))

    def _wait(self, active: Active) -> int:
        return self._waited.get(active.sequence.uid, 0)

"""A fixed batch: as many sequences as fit start together, and the next ones when all of them have finished (EQSPEC, rollback, gap)."""

from __future__ import annotations

from collections.abc import Sequence as Many

from paceline.core.request import Sequence
from paceline.scheduling.continuous import Active, Scheduler, Turn


class FixedBatch(Scheduler):
    """Static batching. `SchedulerConfig.max_sequences` is the size of the batch; finished sequences leave it, nobody joins."""

    def turns(self) -> list[Turn]:
        """Everybody still running; prompts are read before anybody decides."""
        if not self.running:
            self._admit()
        return self._shares(self.running)

    def _shares(self, chosen: Many[Active]) -> list[Turn]:
        """Turns of the sequences of one batch: the unread part of prompts first, in chunks of equally many rows, then all decide."""
        unread = [active for active in chosen if active.uncached > 1]
        if not unread:
            return [Turn(active, 0, True) for active in chosen]
        rows = max(1, self.config.max_rows // len(unread))
        return [Turn(active, min(active.uncached - 1, rows), False) for active in unread]

    def _leader(self, sequence: Sequence) -> None:
        """Nobody: rows of a rectangle share nothing, so samples of one prompt read it each for themselves."""
        return

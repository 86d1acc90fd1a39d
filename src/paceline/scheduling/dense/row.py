"""One sequence in a dense cache: which columns of the rectangle hold its tokens, or the copy that was put aside."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from paceline.core.errors import UsageError
from paceline.memory import runs as spans
from paceline.memory.allocator import OwnershipError
from paceline.memory.cross import CrossMemory
from paceline.memory.pool import KVSnapshot
from paceline.memory.runs import Run
from paceline.scheduling.dense.alignment import Standing

if TYPE_CHECKING:
    from paceline.scheduling.dense.memory import DenseMemory


class DenseRow:
    """Logical tokens `0..live` of one sequence, `0..length` of them committed; a `memory.contract.SequenceStore`.

    Inside the rectangle `index` is its row there and `columns` says where its tokens stand; outside, `aside` holds a copy without padding.
    Made by `DenseMemory.admit`.
    """

    cross: CrossMemory | None = None  # a dense cache serves decoder-only models

    def __init__(self, memory: DenseMemory, promised: int) -> None:
        self.memory, self.promised = memory, promised
        self.length = self.live = self.wanted = 0
        self.index: int | None = None
        self.columns: list[Run] = []
        self.aside: KVSnapshot | None = None

    @property
    def standing(self) -> Standing:
        """As an alignment sees it."""
        return Standing(self.columns, self.live)

    @property
    def open(self) -> bool:
        """Whether rows were written that no commit has judged yet."""
        return self.live > self.length

    def reserve(self, rows: int) -> None:
        """See `SequenceStore`. Columns are found when the rows are written; here only the budget is checked."""
        self.memory.check(self, self.length + rows)
        self.wanted = self.length + rows

    def write(self, columns: Sequence[Run]) -> None:
        """`DenseRunner` only: tokens have been written to these columns, as scratch."""
        spans.append(self.columns, columns)
        self.live += spans.size(columns)

    def runs(self, stop: int) -> list[Run]:
        """Physical half-open ranges of tokens `0..stop` in the pools.

        Raises:
            OwnershipError: if it stands outside the rectangle, or holds fewer.
        """
        if stop > self.live or (self.index is None and stop):
            raise OwnershipError(f"tokens ..{stop} asked for, {self.live if self.index is not None else 0} are in the rectangle")
        base = self.memory.base(self.index or 0)
        return [(base + low, base + high) for low, high in spans.cut(self.columns, 0, stop)]

    def commit(self, rows: Sequence[int]) -> None:
        """See `SequenceStore`. Nothing is copied inside the rectangle: rejected columns are forgotten.

        Raises:
            UsageError: if the rows are not increasing, or were not written.
        """
        scratch = self.live - self.length
        if rows and (rows[0] < 0 or rows[-1] >= scratch or any(a >= b for a, b in pairwise(rows))):
            raise UsageError(f"commit of rows {list(rows)}: must be strictly increasing within the {scratch} written")
        kept = [(self.length + row, self.length + row + 1) for row in rows]
        self._keep([(0, self.length), *kept])
        self._count(self.live)

    def truncate(self, length: int) -> None:
        """See `SequenceStore`.

        Raises:
            UsageError: if fewer are committed.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot truncate to {length} tokens: {self.length} are committed")
        self._keep([(0, length)])
        self._count(length)

    def snapshot(self) -> KVSnapshot:
        """A copy of the keys and values of all tokens, scratch included, without padding."""
        if self.aside is not None:
            return self.aside
        return self.memory.pool.read(self.runs(self.live))

    def fork(self) -> DenseRow:
        """See `SequenceStore`. A rectangle shares nothing: the tokens are copied."""
        copy = self.memory.admit((), reserve=self.promised)
        copy.aside, copy.live = self.snapshot(), self.live
        copy._keep([(0, self.length)])
        copy._count(self.length)
        return copy

    def bytes(self) -> int:
        """Bytes of the committed tokens; padding is the rectangle's."""
        return self.length * self.memory.layout.bytes_per_slot

    def close(self) -> None:
        """`DenseMemory.release` only: hold nothing."""
        self._count(0)
        self.index, self.columns, self.aside = None, [], None
        self.live = self.wanted = self.promised = 0

    def _count(self, length: int) -> None:
        """Set the committed length; the ledger follows."""
        self.memory.ledger.add(f"{self.memory.category}_used", (length - self.length) * self.memory.layout.bytes_per_slot)
        self.length = length

    def _keep(self, logical: list[Run]) -> None:
        """Reduce to these of the tokens."""
        if self.aside is not None:
            stores = tuple(torch.cat([store[:, low:high] for low, high in logical], dim=1) for store in self.aside.stores)
            self.aside = KVSnapshot(stores, spans.size(logical))
        else:
            kept: list[Run] = []
            for low, high in logical:
                spans.append(kept, spans.cut(self.columns, low, high))
            self.columns = kept
        self.live = spans.size(logical)
        self.wanted = 0

"""The dense cache: one rectangle of rows and columns for the sequences of the current forward, copies put aside for all others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from paceline.core.errors import UsageError
from paceline.memory.allocator import OutOfSlots, OwnershipError
from paceline.memory.ledger import Ledger
from paceline.memory.pool import KVLayout, KVPool, KVSnapshot
from paceline.scheduling.dense.alignment import Alignment
from paceline.scheduling.dense.row import DenseRow

GRAIN = 64  # columns; rectangles grow in steps of this


@dataclass(slots=True)
class Traffic:
    """What bringing rows into line has cost.

    Args:
        alignments: how often rows were brought into line.
        free: how many of these copied nothing.
        moved: bytes copied to new places in the rectangle, rows that join included.
        aside: bytes copied out of the rectangle because their row was not wanted (write-back).
        regrown: bytes copied because the rectangle had to be made larger.
        seconds: spent on all of it.
    """

    alignments: int = 0
    free: int = 0
    moved: int = 0
    aside: int = 0
    regrown: int = 0
    seconds: float = 0.0

    @property
    def copied(self) -> int:
        """Bytes copied in all."""
        return self.moved + self.aside + self.regrown


class DenseMemory:
    """Keys and values of each layer as one tensor (rows, columns, kv_heads, head_dim), a `memory.contract.TokenMemory`.

    `keys` and `values` show the same storage flat, (rows * columns, ..), which is how forwards address it. Rows do not share prefixes.

    Args:
        layout: what a token takes.
        slots: budget in tokens of content, over all sequences; padding comes on top, and the ledger shows it.
        alignment: where rows stand before each step.
        ledger: where bytes are booked: the rectangle and the copies under `category`, the content under `{category}_used`.
        category: of the ledger.

    Raises:
        UsageError: for fewer than one slot.
    """

    def __init__(self, layout: KVLayout, slots: int, alignment: Alignment, ledger: Ledger | None = None, category: str = "kv") -> None:
        if slots < 1:
            raise UsageError(f"a dense KV memory of {slots} tokens; at least 1 is needed")
        self.layout, self.total_slots, self.alignment, self.category = layout, slots, alignment, category
        self.ledger = ledger if ledger is not None else Ledger()
        self.ledger.part(f"{category}_used")
        self.sequences: set[DenseRow] = set()
        self.rows: list[DenseRow] = []  # those in the rectangle
        self.height = self.width = 0  # rows and columns of the rectangle's storage
        self.end = 0  # first column that no row has used
        self.traffic = Traffic()
        self.pool = KVPool(layout, 0)
        self._book()

    @property
    def keys(self) -> Sequence[Tensor]:
        return self.pool.keys

    @property
    def values(self) -> Sequence[Tensor]:
        return self.pool.values

    @property
    def free_slots(self) -> int:
        """Tokens of content that still fit the budget."""
        return self.total_slots - sum(max(row.live, row.wanted) for row in self.sequences)

    def can_admit(self, tokens: int) -> bool:
        """Whether that many tokens fit beside what running sequences hold and were promised."""
        return self.total_slots - sum(max(row.live, row.wanted, row.promised) for row in self.sequences) >= tokens

    def admit(self, ids: Sequence[int], reserve: int = 0, namespace: Hashable = None) -> DenseRow:
        """A new sequence, empty. Arguments as for `SlotMemory.admit`; `namespace` has no meaning here.

        Raises:
            OutOfSlots: if `ids` do not fit now; nothing changes.
        """
        row = DenseRow(self, len(ids) + reserve)
        self.check(row, len(ids))
        self.sequences.add(row)
        return row

    def release(self, sequence: DenseRow, ids: Sequence[int] | None = None) -> None:
        """End a sequence's memory; its columns are free at once.

        Raises:
            OwnershipError: if it was released before or belongs to another memory.
        """
        if sequence not in self.sequences:
            raise OwnershipError("this sequence does not live in this memory, or was released before")
        self.sequences.remove(sequence)
        if sequence.index is not None:
            self.rows.remove(sequence)
        sequence.close()
        self._book()

    def check(self, row: DenseRow, tokens: int) -> None:
        """See that a row may grow to `tokens`.

        Raises:
            OutOfSlots: if the budget does not allow it.
        """
        others = sum(max(other.live, other.wanted) for other in self.sequences if other is not row)
        if others + tokens > self.total_slots:
            raise OutOfSlots(
                f"a sequence of {tokens} tokens beside {others} others in a dense cache of {self.total_slots}; raise kv_tokens"
            )

    def base(self, index: int) -> int:
        """First slot of a row of the rectangle."""
        return index * self.width

    def arrange(self, rows: Sequence[DenseRow], block: int) -> None:
        """Bring the rows of the next forward into the rectangle and into line, with `block` free columns behind them.

        Other rows are put aside. While a draft grows, rows stay where they are: columns move between steps only.

        Args:
            rows: distinct sequences of this memory.
            block: columns that will be written.
        """
        start = perf_counter()
        if not (any(row.open for row in rows) and all(row.index is not None for row in rows)):
            self._align(rows)
        self._fit(len(self.rows), self.end + block)
        self.traffic.seconds += perf_counter() - start
        self._book()

    def _align(self, rows: Sequence[DenseRow]) -> None:
        before = self.traffic.copied
        for row in [row for row in self.rows if row not in rows]:
            self._put_aside(row)
        targets = self.alignment.targets([row.standing for row in rows], self.end if self.rows else 0)
        places = _places(rows)
        movers: list[tuple[DenseRow, KVSnapshot]] = []
        for row, columns in zip(rows, targets.columns, strict=True):
            if row.live and (row.index != places[row] or row.columns != columns):
                movers.append((row, self.read(row)))
        self._fit(len(rows), targets.end)
        for row, columns in zip(rows, targets.columns, strict=True):
            row.index, row.columns, row.aside = places[row], columns, None
        for row, snapshot in movers:
            self.write(row, snapshot)
            self.traffic.moved += snapshot.bytes
        self.rows, self.end = list(rows), targets.end
        self.traffic.alignments += 1
        self.traffic.free += self.traffic.copied == before

    def read(self, row: DenseRow) -> KVSnapshot:
        """A copy of a row's tokens, to be written elsewhere."""
        return row.snapshot()

    def write(self, row: DenseRow, snapshot: KVSnapshot) -> None:
        """Fill a row's columns."""
        self.pool.write(row.runs(row.live), snapshot)

    def _put_aside(self, row: DenseRow) -> None:
        row.aside = row.snapshot() if row.live else None
        row.index, row.columns = None, []
        self.rows.remove(row)
        self.traffic.aside += 0 if row.aside is None else row.aside.bytes

    def _fit(self, height: int, width: int) -> None:
        """Make the storage at least that large. Rows keep their columns."""
        if height <= self.height and width <= self.width:
            return
        promised = max((row.promised for row in self.sequences), default=0)
        if width > self.width:
            width = -(-max(width + width // 4, promised + GRAIN) // GRAIN) * GRAIN
        kept = [(row, row.snapshot()) for row in self.rows if row.live]
        self.height, self.width = max(height, self.height), max(width, self.width)
        self.pool = KVPool(self.layout, self.height * self.width)
        for row, snapshot in kept:
            self.pool.write(row.runs(row.live), snapshot)
            self.traffic.regrown += snapshot.bytes

    def _book(self) -> None:
        copies = sum(row.aside.bytes for row in self.sequences if row.aside is not None)
        self.ledger.set(self.category, self.pool.bytes + copies)


def _places(rows: Sequence[DenseRow]) -> dict[DenseRow, int]:
    """A row of the rectangle for each sequence: its own while that is among the first `len(rows)`, else one that is vacant."""
    taken = {row.index for row in rows if row.index is not None and row.index < len(rows)}
    vacant = iter([index for index in range(len(rows)) if index not in taken])
    return {row: row.index if row.index in taken and row.index is not None else next(vacant) for row in rows}

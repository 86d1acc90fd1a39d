"""Where the rows of a rectangle stand: the arithmetic of unpad, append, repad, and of leaving gaps.

Row i of a left-padded rectangle holds padding p_i and content c_i with p_i + c_i = L for all rows (arXiv 2510.22876, sec. 3). After the
rows committed a_i tokens the smallest rectangle is L' = max(c_i + a_i) wide, and row i moves by (L' - L) - a_i columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline.memory.runs import Run, size


def shifts(padding: Sequence[int], content: Sequence[int], committed: Sequence[int]) -> list[int]:
    """Columns by which each row of a left-padded rectangle moves when it is made as narrow as its new content allows.

    Args:
        padding, content: p_i and c_i; their sums are equal.
        committed: a_i, tokens each row has gained.

    Raises:
        ValueError: if the rows do not end in the same column.
    """
    widths = {padded + held for padded, held in zip(padding, content, strict=True)}
    if len(widths) != 1:
        raise ValueError(f"rows end in columns {sorted(widths)}; a rectangle's rows end in the same one")
    (width,) = widths
    wider = max(held + gained for held, gained in zip(content, committed, strict=True)) - width
    return [wider - gained for gained in committed]


@dataclass(frozen=True, slots=True)
class Standing:
    """A row as an alignment sees it.

    Args:
        columns: of its tokens in order, as runs; empty while it is outside the rectangle.
        tokens: how many it holds, inside or outside.
    """

    columns: Sequence[Run]
    tokens: int

    @property
    def inside(self) -> bool:
        return size(self.columns) == self.tokens


@dataclass(frozen=True, slots=True)
class Targets:
    """Where rows shall stand.

    Args:
        columns: of each row's tokens.
        end: first column behind all of them, where the next block is written.
    """

    columns: list[list[Run]]
    end: int


class Alignment(Protocol):
    """Decides, before a step, where the rows of its rectangle shall stand."""

    def targets(self, rows: Sequence[Standing], end: int) -> Targets:
        """Columns for every row.

        Args:
            rows: that share the next forward.
            end: first column that no row of the rectangle has used.
        """


class LeftPadded:
    """Every row contiguous and ending in the same column, in the narrowest rectangle that holds them (EQSPEC, sec. 4.1)."""

    def targets(self, rows: Sequence[Standing], end: int) -> Targets:
        """See `Alignment`. Rows that gained equally many tokens stay where they are."""
        widest = max(row.tokens for row in rows)
        return Targets([[(widest - row.tokens, widest)] if row.tokens else [] for row in rows], widest)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Rejected tokens stay where they were written and are masked for ever; rows move only when too much is wasted.

    Args:
        waste: largest share of masked columns behind the padding, over all rows.
    """

    waste: float = 0.25

    def targets(self, rows: Sequence[Standing], end: int) -> Targets:
        """See `Alignment`. A row from outside is set to end where the others do; columns that everybody rejected are used again."""
        end = max((row.columns[-1][1] for row in rows if row.inside and row.columns), default=0)
        if wasted(rows, end) > self.waste or any(not row.inside and row.tokens > end for row in rows):
            return LeftPadded().targets(rows, end)
        joined = [list(row.columns) if row.inside else [(end - row.tokens, end)] for row in rows]
        return Targets(joined, end)


def wasted(rows: Sequence[Standing], end: int) -> float:
    """Share of the columns behind the padding that hold no token of their row."""
    inside = [row for row in rows if row.inside and row.tokens]
    spanned = sum(end - row.columns[0][0] for row in inside)
    return 1 - sum(row.tokens for row in inside) / spanned if spanned else 0.0

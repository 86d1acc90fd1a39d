"""One sequence's part of a forward: which committed tokens still need memory, and the tree judged behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.core.batch import CrossView, MemoryView, Segment
from paceline.core.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Feed:
    """Rows of one sequence: `lead` tokens that are output already but not yet in memory, then (once they all fit) a tree.

    Prefill, catch-up after a lossy draft and decoding are the same thing with leads of different length.

    Args:
        memory: of the sequence.
        lead: tokens fed before the tree's root.
        tree: judged behind them; `None` while the prompt is not in memory yet.
        cross: encoded source of the sequence, for encoder-decoders.
    """

    memory: MemoryView
    lead: Sequence[int]
    tree: TokenTree | None
    cross: CrossView | None = None

    @property
    def rows(self) -> int:
        return len(self.lead) + (0 if self.tree is None else len(self.tree))

    def ids(self) -> list[int]:
        """Token of each row."""
        return [*self.lead, *(() if self.tree is None else self.tree.token)]

    def positions(self) -> list[int]:
        """Position of each row: tree nodes count from the root by depth."""
        start = self.memory.length
        root = start + len(self.lead)
        return [*range(start, root), *(() if self.tree is None else (root + depth for depth in self.tree.depth))]

    def segment(self) -> Segment:
        """Rows and visibility: causal for the lead, ancestors within the tree."""
        shape = None if self.tree is None or self.tree.is_chain else self.tree
        return Segment(self.memory, self.rows, tree=shape, cross=self.cross)

    def kept_rows(self, accepted: Sequence[int]) -> list[int]:
        """Row offsets to commit: the lead, the root, and the accepted nodes."""
        lead = len(self.lead)
        if self.tree is None:
            return list(range(lead))
        return [*range(lead + 1), *(lead + node for node in accepted)]

"""A sequence that STAND drafts for, and its draft of the present step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.drafting.stand.budget import Patience
from paceline.drafting.stand.scope import Space
from paceline.drafting.stand.template import Places

NO_DRAW = -1  # class of what was not weighed


@dataclass(slots=True)
class Walk:
    """A sequence, where it stands, and its draft.

    Args:
        sequence: drafted for.
        space: of the table.
        sampled: whether children are drawn (else the likeliest are chosen).
        ends: tokens below which nothing is drafted.
        begin: tokens of its source, which contexts do not reach back to.
        text: its history.
        patience: whether to try where nothing seems to pay.
        step: tokens there were when the draft was made; keys the random numbers.
        places: of the template, if it has any nodes.
        most, depth: largest and deepest tree.
        due: whether to try in this step; `asked`: whether that mattered.
        tree: the draft, until it was judged.
        kinds: class of each node's draw, in the order of the tree.
    """

    sequence: Sequence
    space: Space
    sampled: bool
    ends: frozenset[int]
    begin: int
    text: array[int] = field(default_factory=lambda: array("i"))
    patience: Patience = field(default_factory=Patience)
    step: int = 0
    places: Places | None = None
    most: int = 0
    depth: int = 0
    due: bool = False
    asked: bool = False
    tree: TokenTree | None = None
    kinds: Many[int] = ()

    def read(self) -> None:
        """Take over what was written since."""
        self.text.extend(self.sequence.history[len(self.text) :])

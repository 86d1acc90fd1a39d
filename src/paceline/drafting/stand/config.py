"""Options of STAND."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from paceline.core.errors import UsageError
from paceline.drafting.stand.scope import Scope
from paceline.drafting.stand.template import DEPTH

NODES_BY_BATCH = ((1, 80), (4, 32))  # sequences drafted for, nodes for each: rows of a forward are shared by all
NODES_BEYOND = 16
MOST_CANDIDATES = 64  # numbers that `growth.draw_counters` keeps apart per node


@dataclass(frozen=True, slots=True)
class StandConfig:
    """Options of stand.

    Args:
        contexts: lengths of the contexts looked up, longest first, `x`-separated.
        candidates: most tokens remembered per context.
        nodes: largest draft tree; 0 chooses by batch size (80, 32 up to 4 sequences, 16 beyond).
        depth: longest path of the tree.
        budget: `measured` sends as much of that tree as pays, given the cost of rows on this device and how often each of its nodes was
            accepted, down to nothing where text does not repeat; `fixed` sends all of it, as the paper does.
        fallback: `copy` copies what followed the last tokens earlier in this sequence where the table knows nothing, or something that
            was accepted less often; judged as chosen. `none` leaves that to other methods.
        template: file with a measured tree shape; empty takes the one measured on pocket-code, `assumed` the one computed from assumed
            acceptance by rank.
        table: file written by `Stand.save` to start from.
        scope: who shares the table: all trajectories of one prompt (`problem`), one trajectory (`request`), one tenant (`user`), or
            everybody (`process`).
        max_entries: contexts kept in all; the least recently used go first.
        idle: problems whose table is kept after their last trajectory ended.
        observe_prompt: learn from prompts too, at every position that is not in the prefix cache; asks the target for their logits.
        observe_rejected: learn at every judged node, not only along the accepted path.
        greedy_temperature: temperature of the laws remembered where the target is greedy; 0 remembers its choice alone.
        said: weight of the token that really followed beside the target's law (0, as in the paper: the law alone). Text that the target
            copies is better foretold by what it said than by what it might have said.
        stochastic: draw children; off takes the likeliest instead, which accepts less where the target samples (the paper's ablation).
        record: keep the accepted child ranks of every step in `traces`, to measure a template with.
    """

    contexts: str = "8x4x2x1"
    candidates: int = 10
    nodes: int = 0
    depth: int = DEPTH
    budget: Literal["fixed", "measured"] = "measured"
    fallback: Literal["copy", "none"] = "copy"
    template: str = ""
    table: str = ""
    scope: Scope = "problem"
    max_entries: int = 2_000_000
    idle: int = 16
    observe_prompt: bool = False
    observe_rejected: bool = False
    greedy_temperature: float = 1.0
    said: float = 0.0
    stochastic: bool = True
    record: bool = False

    def __post_init__(self) -> None:
        rules = {
            "candidates": (1 <= self.candidates <= MOST_CANDIDATES, f"in 1..{MOST_CANDIDATES}"),
            "nodes": (self.nodes >= 0, ">= 0 (0 chooses by batch size)"),
            "depth": (self.depth >= 0, ">= 0"),
            "max_entries": (self.max_entries >= 1, ">= 1"),
            "idle": (self.idle >= 0, ">= 0"),
            "said": (0 <= self.said <= 1, "between 0 and 1"),
            "greedy_temperature": (0 <= self.greedy_temperature < float("inf"), "a finite number >= 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"stand: {name}={getattr(self, name)!r} must be {wanted}")
        try:
            lengths = self.lengths
        except ValueError:
            lengths = ()
        if not lengths or lengths[-1] < 1 or any(a <= b for a, b in pairwise(lengths)):
            raise UsageError(f"stand: contexts={self.contexts!r} must be falling positive numbers joined by x, as in 8x4x2x1")

    @property
    def most_draft(self) -> int:
        """Nodes of the largest draft."""
        return self.nodes or NODES_BY_BATCH[0][1]

    def size(self, sequences: int) -> int:
        """Nodes of the largest draft for each of so many sequences."""
        return self.nodes or next((size for most, size in NODES_BY_BATCH if sequences <= most), NODES_BEYOND)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Context lengths, longest first."""
        return tuple(int(part) for part in self.contexts.split("x"))

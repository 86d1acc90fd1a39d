"""Options of STAND."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from paceline.core.errors import UsageError
from paceline.drafting.stand_scope import Scope
from paceline.drafting.stand_template import DEPTH

MOST_CANDIDATES = 64  # numbers that `growth.draw_counters` keeps apart per node


@dataclass(frozen=True, slots=True)
class StandConfig:
    """Options of stand.

    Args:
        contexts: lengths of the contexts looked up, longest first, `x`-separated.
        candidates: most tokens remembered per context.
        nodes: size of the draft tree; 0 chooses by batch size (80, 32 up to 4 sequences, 16 beyond).
        depth: longest path of the tree.
        template: file with a measured tree shape; empty takes the built-in one.
        scope: who shares the table: all trajectories of one prompt (`problem`), one trajectory (`request`), one tenant (`user`), or
            everybody (`process`).
        max_entries: contexts kept in all; the least recently used go first.
        idle: problems whose table is kept after their last trajectory ended.
        observe_rejected: learn at every judged node, not only along the accepted path.
        greedy_temperature: temperature of the laws remembered where the target is greedy; 0 remembers its choice alone.
        stochastic: draw children; off takes the likeliest instead, which accepts less where the target samples (the paper's ablation).
        record: keep the accepted child ranks of every step in `traces`, to measure a template with.
    """

    contexts: str = "3x2x1"
    candidates: int = 10
    nodes: int = 0
    depth: int = DEPTH
    template: str = ""
    scope: Scope = "problem"
    max_entries: int = 2_000_000
    idle: int = 16
    observe_rejected: bool = False
    greedy_temperature: float = 1.0
    stochastic: bool = True
    record: bool = False

    def __post_init__(self) -> None:
        rules = {
            "candidates": (1 <= self.candidates <= MOST_CANDIDATES, f"in 1..{MOST_CANDIDATES}"),
            "nodes": (self.nodes >= 0, ">= 0 (0 chooses by batch size)"),
            "depth": (self.depth >= 0, ">= 0"),
            "max_entries": (self.max_entries >= 1, ">= 1"),
            "idle": (self.idle >= 0, ">= 0"),
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
            raise UsageError(f"stand: contexts={self.contexts!r} must be falling positive numbers joined by x, as in 3x2x1")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Context lengths, longest first."""
        return tuple(int(part) for part in self.contexts.split("x"))

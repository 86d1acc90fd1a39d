"""The best static token tree for a measured acceptance, by dynamic programming (Sequoia, arXiv 2402.12374, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.core.errors import UsageError
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict

Acceptance = tuple[tuple[float, ...], ...]  # [depth][rank]: chance that the child of this rank is the accepted one, its parent accepted
Shape = tuple[tuple[int, ...], ...]  # for each node, its children in rank order; node 0 is the root


def optimal_shape(acceptance: Acceptance, nodes: int, depth: int) -> Shape:
    """The tree of at most `nodes` nodes below the root and at most this depth with the most expected accepted tokens.

    Ranks of siblings are contiguous from 0; a child of rank r exists only beside those of lower rank, as draws in order demand.
    Cost: depth x ranks x nodes^2, in vector operations.

    Args:
        acceptance: by depth of the child (0 below the root) and rank; the last depth stands for all deeper ones.
        nodes, depth: limits.

    Returns:
        Children of every node, nodes numbered layer by layer.
    """
    plan = _Plan.solve(acceptance, nodes, depth)
    shape: list[tuple[int, ...]] = []
    layer = [nodes]  # for each node of the layer, how many nodes may stand below it
    for level in range(depth + 1):
        following: list[int] = []
        first = len(shape) + len(layer)
        for budget in layer:
            spent = plan.split(level, budget) if level < depth else []
            shape.append(tuple(range(first + len(following), first + len(following) + len(spent))))
            following.extend(spent)
        layer = following
        if not layer:
            break
    return tuple(shape)


def expected_accepted(shape: Shape, acceptance: Acceptance) -> float:
    """Sum over nodes of the product of acceptances along their paths."""
    total, chances, depths = 0.0, {ROOT: 1.0}, {ROOT: 0}
    for node, children in enumerate(shape):
        row = acceptance[min(depths[node], len(acceptance) - 1)]
        for rank, child in enumerate(children):
            depths[child] = depths[node] + 1
            chances[child] = chances[node] * (row[rank] if rank < len(row) else 0.0)
            total += chances[child]
    return total


@dataclass(frozen=True, slots=True)
class _Plan:
    """`best[d][r][n]`: most expected tokens from children of rank r and up below a node of depth d, spending n nodes; `first[d][r][n]`:
    how many of them the child of rank r and what is below it get."""

    best: list[list[npt.NDArray[np.float64]]]
    first: list[list[npt.NDArray[np.int64]]]

    @classmethod
    def solve(cls, acceptance: Acceptance, nodes: int, depth: int) -> _Plan:
        plan = cls([], [])
        nothing = np.zeros(nodes + 1)
        below = nothing
        for level in reversed(range(depth)):
            row = acceptance[min(level, len(acceptance) - 1)]
            best, first = [nothing], [np.zeros(nodes + 1, dtype=np.int64)]
            for chance in reversed(row):
                one = chance * (1.0 + np.concatenate(([0.0], below[:-1])))  # [s]: this child with s nodes in all; s = 0 is none
                one[0] = -np.inf
                value, given = np.zeros(nodes + 1), np.zeros(nodes + 1, dtype=np.int64)  # no child of this rank: none of higher ones
                for spent in range(1, nodes + 1):
                    options = one[1 : spent + 1] + best[0][spent - 1 :: -1][:spent]
                    at = int(options.argmax())
                    if options[at] > value[spent]:
                        value[spent], given[spent] = options[at], at + 1
                best, first = [value, *best], [given, *first]
            plan.best.insert(0, best)
            plan.first.insert(0, first)
            below = best[0]
        return plan

    def split(self, level: int, budget: int) -> list[int]:
        """What the children of a node of this depth may spend below themselves, of a budget for all of them."""
        spent: list[int] = []
        for given in self.first[level]:
            share = int(given[budget])
            if share == 0:
                break
            spent.append(share - 1)
            budget -= share
        return spent


@dataclass(slots=True)
class AcceptanceTable:
    """Counts, over judged trees, how often the child of each depth and rank was offered to a reached node, and how often accepted.

    Args:
        ranks: ranks that are told apart.
    """

    ranks: int = 16
    reached: list[list[int]] = field(default_factory=list)  # [depth][rank]: reached nodes that had a child of this rank
    accepted: list[list[int]] = field(default_factory=list)

    def observe(self, tree: TokenTree, verdict: Verdict) -> None:
        """Count one judged tree."""
        children = tree.children()
        for depth, node in enumerate((ROOT, *verdict.accepted)):
            if len(self.reached) <= depth:
                self.reached.append([0] * self.ranks)
                self.accepted.append([0] * self.ranks)
            taken = verdict.accepted[depth] if depth < len(verdict.accepted) else None
            for rank, child in enumerate(children[node][: self.ranks]):
                self.reached[depth][rank] += 1
                self.accepted[depth][rank] += child == taken

    def rates(self, by_depth: bool = False) -> Acceptance:
        """Acceptance by rank, of all depths together or of each that was reached. Ranks behind the last accepted one are left out.

        Raises:
            UsageError: if nothing was accepted yet.
        """
        depths = range(len(self.reached))
        groups = [[depth] for depth in depths] if by_depth else [list(depths)]
        found = []
        for group in groups:
            pairs = [(sum(self.accepted[d][r] for d in group), sum(self.reached[d][r] for d in group)) for r in range(self.ranks)]
            rates = [hits / seen if seen else 0.0 for hits, seen in pairs]
            while rates and rates[-1] == 0.0:
                rates.pop()
            if rates:
                found.append(tuple(rates))
        if not found:
            raise UsageError("no draft was accepted, so there is no acceptance to plan a tree from; measure over more tokens")
        return tuple(found)


def spell(acceptance: Acceptance) -> str:
    """As a method option: ranks joined by `/`, depths by `:`."""
    return ":".join("/".join(f"{rate:.4g}" for rate in row) for row in acceptance)


def parse_acceptance(text: str) -> Acceptance:
    """Read what `spell` wrote.

    Raises:
        ValueError: for anything but numbers in [0, 1].
    """
    rows: Many[Many[float]] = [[float(rate) for rate in row.split("/")] for row in text.split(":")]
    if any(not 0.0 <= rate <= 1.0 for row in rows for rate in row):
        raise ValueError("acceptance rates lie in [0, 1]")
    return tuple(tuple(row) for row in rows)

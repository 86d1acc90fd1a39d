"""Growing a token tree by estimated value (DySpec, arXiv 2410.11744): best first within a budget, or layer by layer down to a threshold.

Both growers are generators: they yield the nodes whose draft laws they need and are sent those laws, so that drafters can read the
frontiers of many trees in one forward, and tests can answer from a table. Whether a node gets another child is always decided before
the value of that child is known; that, draws without replacement and their order are what makes verification exact.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.tree import ROOT, Distribution
from paceline.drafting.growth import Growth

CANCELLED = 0.01  # of the mass left: below, subtraction has lost too many digits and sums are taken anew

Laws = Float[Tensor, "nodes vocabulary"]
Grower = Generator[list[int], Laws, int]  # yields nodes to read, is sent their laws, returns how many nodes it wanted
Odds = Callable[[float, int], float]  # (draft probability of the drawn token, its rank among siblings) -> chance to be accepted


def draft_odds(share: float, rank: int) -> float:
    """The paper's assumption: a draw is accepted with the probability it was drawn with."""
    return share


class Urn:
    """One node's draft distribution, drawn from without replacement.

    Args:
        law: float64 probabilities on the host.
        sums: their cumulative sums.
    """

    def __init__(self, law: Float[Tensor, " vocabulary"], sums: Float[Tensor, " vocabulary"]) -> None:
        self.law = law
        self._probs, self._sums = law.numpy(), sums.numpy()
        self._left = self._total = float(self._sums[-1])
        self._drawn: list[int] = []  # ascending
        self._support = int(np.count_nonzero(self._probs)) if np.isfinite(self._total) else 0  # a broken row offers nothing

    @property
    def empty(self) -> bool:
        """Whether every token of the support has been drawn."""
        return len(self._drawn) >= self._support

    @property
    def drawn(self) -> int:
        """How many tokens have been drawn: the rank of the next."""
        return len(self._drawn)

    def share(self, token: int) -> float:
        """Probability of a token among those left."""
        return min(1.0, float(self._probs[token]) / self._left)

    def sample(self, number: float) -> int:
        """The token that a uniform number in [0, 1) selects among those left, in id order."""
        if self._left > CANCELLED * self._total:
            aim = number * self._left
            for token in self._drawn:  # skip their stretches of the cumulative sum instead of summing anew
                if token and aim < self._sums[token - 1]:
                    break
                aim += self._probs[token]
            found = int(np.searchsorted(self._sums, aim, side="right"))
            if found < len(self._probs) and self._probs[found] > 0 and found not in self._drawn:
                return found
        sums = self._rest().cumsum()
        found = int(np.searchsorted(sums, number * sums[-1], side="right"))
        return min(found, int(self._rest().nonzero()[0][-1]))

    def likeliest(self) -> int:
        """The likeliest token left, the lowest id among equals."""
        return int(self._rest().argmax())

    def remove(self, token: int) -> None:
        """Take a drawn token out."""
        self._drawn = sorted([*self._drawn, token])
        self._left -= float(self._probs[token])
        if self._left <= CANCELLED * self._total:
            self._left = float(self._rest().sum())

    def _rest(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        rest = self._probs.copy()
        rest[self._drawn] = 0.0
        return rest


@dataclass(slots=True)
class ValueGrowth(Growth):
    """A growing tree with, for every node, what was estimated when it was drawn. The root's entries mean nothing.

    `reach`: probability that verification gets to judge the node. `share`: its draft probability among the tokens left. `rank`: siblings
    drawn before it. `odds`: its estimated chance to be accepted if judged.
    """

    reach: list[float] = field(default_factory=lambda: [1.0])
    share: list[float] = field(default_factory=lambda: [1.0])
    rank: list[int] = field(default_factory=lambda: [0])
    odds: list[float] = field(default_factory=lambda: [1.0])

    @property
    def drafted(self) -> int:
        """Nodes below the root."""
        return len(self.token) - 1

    @property
    def estimates(self) -> list[float]:
        """Estimated probability of each node, root first, to be accepted; the sum below the root estimates accepted tokens."""
        return [reach * odds for reach, odds in zip(self.reach, self.odds, strict=True)]

    def draw(self, node: int, urn: Urn, reach: float, pick: Pick, odds: Odds) -> tuple[int, float]:
        """Add one child to a node; returns it and its odds."""
        token = pick(self, node, urn)
        share, rank = urn.share(token), urn.drawn
        urn.remove(token)
        if rank == 0:
            self.q[node] = Distribution(urn.law)
        child = self.add(token, node)
        self.reach.append(reach)
        self.share.append(share)
        self.rank.append(rank)
        self.odds.append(odds(share, rank))
        return child, self.odds[child]


Pick = Callable[[ValueGrowth, int, Urn], int]  # (tree, node about to get a child, its urn) -> the child's token


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a tree may become.

    Args:
        nodes: most nodes below the root.
        depth: longest path below the root.
        eos: ids that get no children.
    """

    nodes: int
    depth: int
    eos: frozenset[int] = frozenset()


def seedling(pending: int) -> ValueGrowth:
    """A tree with only its root, to be grown."""
    return ValueGrowth([pending], [-1], [0], [None])


def best_first(growth: ValueGrowth, bounds: Bounds, pick: Pick, odds: Odds = draft_odds) -> Grower:
    """Algorithm 1: always take the draw that verification is most likely to reach, until the budget is spent.

    Draft laws are asked for when a request is popped, so leaves cost no draft forward.

    Args:
        growth: a seedling.
        bounds: the budget and limits.
        pick: draws a token.
        odds: estimated chance of a draw to be accepted.

    Returns:
        A generator that yields one node at a time and returns the number of nodes.
    """
    order = count()  # breaks ties: the earlier request first
    requests = [(-1.0, next(order), ROOT)]
    urns: dict[int, Urn] = {}
    while requests and growth.drafted < bounds.nodes:
        value, _, node = heappop(requests)
        reach = -value
        if node not in urns:
            (urns[node],) = _urns((yield [node]))
            if urns[node].empty:
                continue
        child, chance = growth.draw(node, urns[node], reach, pick, odds)
        if not urns[node].empty and chance < 1.0:
            heappush(requests, (-reach * (1.0 - chance), next(order), node))
        if chance > 0.0 and _fertile(growth, child, bounds):
            heappush(requests, (-reach * chance, next(order), child))
    return growth.drafted


def layered(growth: ValueGrowth, bounds: Bounds, threshold: float, pick: Pick, odds: Odds = draft_odds) -> Grower:
    """Algorithm 2: every node worth at least the threshold gets children while a further one is worth that much, a layer at a time.

    When the node limit is hit, drawing stops where it is; nothing that was drawn is ever dropped.

    Args:
        growth: a seedling.
        bounds: limits.
        threshold: least estimated probability that verification reaches a draw.
        pick: draws a token.
        odds: estimated chance of a draw to be accepted.

    Returns:
        A generator that yields whole layers and returns how many nodes the tree wanted: those drawn and, where the limit cut it short,
        one more for every node that was still owed a child.
    """
    frontier = [(ROOT, 1.0)]
    owed = 0
    while frontier:
        if growth.drafted >= bounds.nodes:
            owed += len(frontier)
            break
        following: list[tuple[int, float]] = []
        for (node, value), urn in zip(frontier, _urns((yield [node for node, _ in frontier])), strict=True):
            reach = value
            while reach >= threshold and not urn.empty:
                if growth.drafted >= bounds.nodes:
                    owed += 1
                    break
                child, chance = growth.draw(node, urn, reach, pick, odds)
                if reach * chance >= threshold and _fertile(growth, child, bounds):
                    following.append((child, reach * chance))
                reach *= 1.0 - chance
        frontier = following
    return growth.drafted + owed


def _fertile(growth: ValueGrowth, node: int, bounds: Bounds) -> bool:
    """Whether a node may have children at all."""
    return growth.token[node] not in bounds.eos and growth.depth[node] < bounds.depth


def _urns(laws: Laws) -> Many[Urn]:
    wide = laws.to("cpu", torch.float64)
    return [Urn(law, sums) for law, sums in zip(wide, wide.cumsum(-1), strict=True)]

"""A tree while a draft model grows it, and the draws its children come from."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.tree import ROOT, Distribution, Proposal, TokenTree


@dataclass(slots=True)
class Growth:
    """A tree while it grows, in the order nodes are drafted. `row` is a node's scratch offset once the draft model has read it."""

    token: list[int]
    parent: list[int]
    depth: list[int]
    row: list[int | None]
    q: dict[int, Distribution] = field(default_factory=dict)
    frontier: list[int] = field(default_factory=lambda: [ROOT])
    read: int = 0  # nodes the draft model has read

    def add(self, token: int, parent: int) -> int:
        """Append a child; returns its index."""
        self.token.append(token)
        self.parent.append(parent)
        self.depth.append(self.depth[parent] + 1)
        self.row.append(None)
        return len(self.token) - 1

    def tree(self, sampled: bool, replacement: bool = False) -> tuple[TokenTree, list[int]]:
        """The grown tree in DFS pre-order, and the growth index of each of its nodes.

        Args:
            sampled: children were drawn, from the laws in `q`.
            replacement: and siblings independently of each other.
        """
        if self.parent == list(range(-1, len(self.token) - 1)):  # a chain is in order as it is
            drawn = Proposal(dict(self.q), replacement) if sampled and self.q else None
            return TokenTree(tuple(self.token), tuple(self.parent), drawn), list(range(len(self.token)))
        children: list[list[int]] = [[] for _ in self.token]
        for node in range(1, len(self.token)):
            children[self.parent[node]].append(node)
        order: list[int] = []
        stack = [ROOT]
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(reversed(children[node]))
        place = {node: at for at, node in enumerate(order)}
        parent = tuple(-1 if node == ROOT else place[self.parent[node]] for node in order)
        proposal = Proposal({place[node]: q for node, q in self.q.items()}, replacement) if sampled and self.q else None
        return TokenTree(tuple(self.token[node] for node in order), parent, proposal), order

    @property
    def read_order(self) -> list[int]:
        """Nodes the draft model has read, in scratch order."""
        read = [(row, node) for node, row in enumerate(self.row) if row is not None]
        return [node for _, node in sorted(read)]


def draw_without_replacement(probs: Float[Tensor, " vocabulary"], count: int, numbers: Many[float]) -> list[int]:
    """Up to `count` distinct tokens by successive inverse-CDF draws, each from what the earlier ones left (Sequoia, sec. 3.2).

    Args:
        probs: float64 (vocabulary,), summing to one.
        count: draws; fewer happen when the support runs out.
        numbers: one uniform number per draw.
    """
    left = probs.clone()
    tokens: list[int] = []
    for number in numbers[:count]:
        cumulative = left.cumsum(0)
        mass = float(cumulative[-1])
        if mass <= 0.0:
            break
        token = int(torch.searchsorted(cumulative, number * mass, right=True))
        token = min(token, int(left.nonzero()[-1]))
        tokens.append(token)
        left[token] = 0.0
    return tokens


def draw_with_replacement(probs: Float[Tensor, " vocabulary"], numbers: Many[float]) -> list[int]:
    """One token per number by inverse-CDF draws from one law, repetitions included (SpecInfer, arXiv 2305.09781, sec. 4.3).

    Args:
        probs: float64 (vocabulary,), of any mass; without any, nothing is drawn.
        numbers: uniform in [0, 1).
    """
    return [token for number in numbers for token in draw_without_replacement(probs, 1, (number,))]


def draw_counters(step: int, node: int, width: int) -> range:
    """Counters of a node's draws, distinct from those of every other node and of every other step that drafts the same position."""
    first = (step << 24) + node * 64
    return range(first, first + width)

"""Token trees: the shape every draft takes, and the distributions its children were drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paceline.core.tolerance import Tolerance
from paceline.core.transform import share

ROOT = 0  # the pending token: already emitted, not yet in memory


@dataclass(frozen=True, slots=True)
class Distribution:
    """A draft distribution as it was actually sampled from, dense or restricted to a support.

    Args:
        probs: probabilities, summing to one; with `ids`, a tuple if they are made on the host.
        ids: the token id of each probability, likewise; `None` means `probs` covers the whole vocabulary in order.
    """

    probs: Float[Tensor, " support"] | tuple[float, ...]
    ids: Int[Tensor, " support"] | tuple[int, ...] | None = None

    def share(self, token: int) -> float:
        """Probability of a token, with one wait for a device."""
        if isinstance(self.probs, Tensor) and self.ids is None:
            return share(self.probs, token) if token < len(self.probs) else 0.0
        ids, probs = self.few()
        return probs[ids.index(token)] / sum(probs) if token in ids else 0.0

    def few(self) -> tuple[Sequence[int], Sequence[float]]:
        """Ids and probabilities of a restricted support, on the host."""
        assert self.ids is not None
        ids = self.ids.tolist() if isinstance(self.ids, Tensor) else self.ids
        return ids, self.probs.tolist() if isinstance(self.probs, Tensor) else self.probs

    def dense(self, vocabulary: int, device: torch.device | str = "cpu") -> Float[Tensor, " vocabulary"]:
        """The same law over a whole vocabulary of at least its size, in float64."""
        probs = torch.as_tensor(self.probs, dtype=torch.float64, device=device)
        if self.ids is None:
            return probs if len(probs) == vocabulary else torch.nn.functional.pad(probs, (0, vocabulary - len(probs)))
        ids = torch.as_tensor(self.ids, device=device)
        return torch.zeros(vocabulary, dtype=torch.float64, device=device).scatter_(0, ids, probs)


@dataclass(frozen=True, slots=True)
class Proposal:
    """How the children of each node were drawn; a tree without one has *chosen* children (point masses).

    Args:
        q: for every node whose children were drawn, the distribution they came from, before any draw. Children of a node left out
            count as chosen.
        replacement: whether siblings were drawn independently (SpecInfer) or without replacement (Sequoia, DySpec).
            Siblings stand in the tree in the order they were drawn; verification depends on it.
    """

    q: Mapping[int, Distribution]
    replacement: bool = False


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Candidate continuations of one sequence, in DFS pre-order, on the host.

    A chain is a tree whose nodes have one child each; an empty draft is the root alone, and verifying it is plain decoding.
    Positions and visibility derive from depth and ancestry, never from where a node happens to be stored.

    Args:
        token: candidate ids; `token[ROOT]` is the pending token.
        parent: index of each node's parent, `-1` for the root.
        proposal: the distributions sampled children came from; `None` when the children were chosen deterministically.
        tolerance: how far from greedy decoding an accepted child may be; `None` is exact. Composing trees drops it.

    Raises:
        ValueError: if the nodes are not a single tree in DFS pre-order.
    """

    token: tuple[int, ...]
    parent: tuple[int, ...]
    proposal: Proposal | None = None
    tolerance: Tolerance | None = None
    depth: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.token) != len(self.parent) or not self.token:
            raise ValueError(f"a tree needs one parent per token and at least a root, got {len(self.token)} and {len(self.parent)}")
        if self.parent[ROOT] != -1:
            raise ValueError("node 0 is the root; its parent is -1")
        depth = [0]
        path = [ROOT]  # to the node before: in pre-order a parent must lie on it
        for node, parent in enumerate(self.parent[1:], 1):
            if parent != node - 1:
                while path and path[-1] != parent:
                    path.pop()
                if not path:
                    raise ValueError(f"node {node} is not in DFS pre-order below its parent {parent}")
            depth.append(len(path))
            path.append(node)
        object.__setattr__(self, "depth", tuple(depth))

    def __len__(self) -> int:
        return len(self.token)

    @classmethod
    def chain(
        cls, pending: int, draft: Sequence[int] = (), proposal: Proposal | None = None, tolerance: Tolerance | None = None
    ) -> TokenTree:
        """A single branch below the pending token; with an empty draft, plain decoding."""
        return cls((pending, *draft), tuple(range(-1, len(draft))), proposal, tolerance)

    @classmethod
    def from_paths(cls, pending: int, paths: Iterable[Sequence[int]]) -> TokenTree:
        """Merge branches below the pending token, sharing common prefixes; earlier paths come first among siblings."""
        trie: dict[int, dict] = {}  # type: ignore[type-arg]  # a recursive type says no more here
        for path in paths:
            level = trie
            for token in path:
                level = level.setdefault(token, {})
        tokens, parents = [pending], [-1]
        stack = [(token, ROOT, below) for token, below in reversed(trie.items())]
        while stack:
            token, parent, below = stack.pop()
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            stack.extend((child, node, deeper) for child, deeper in reversed(below.items()))
        return cls(tuple(tokens), tuple(parents))

    @property
    def is_chain(self) -> bool:
        """Whether every node continues the one before it."""
        return self.depth[-1] == len(self.token) - 1

    def children(self) -> list[list[int]]:
        """For each node its children, in draw order."""
        below: list[list[int]] = [[] for _ in self.token]
        for node in range(1, len(self.token)):
            below[self.parent[node]].append(node)
        return below

    def path(self, node: int) -> list[int]:
        """Nodes from the root (excluded) down to `node` (included)."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def child(self, node: int, token: int) -> int | None:
        """The first child of `node` that carries `token`."""
        for below in range(node + 1, len(self.token)):
            if self.parent[below] == node and self.token[below] == token:
                return below
            if self.parent[below] < node:  # pre-order: the subtree ends here
                return None
        return None

    def ancestors(self) -> Bool[Tensor, "nodes nodes"]:
        """Row i is true at i and at every ancestor of i: what node i may attend to inside the tree (SpecInfer, sec. 4.2)."""
        count = len(self.token)
        seen: list[int] = []  # a bit per node
        for node, parent in enumerate(self.parent):
            seen.append(1 << node | (seen[parent] if node else 0))
        width = -(-count // 8)
        packed = np.frombuffer(b"".join(bits.to_bytes(width, "little") for bits in seen), dtype=np.uint8).reshape(count, width)
        return torch.from_numpy(np.unpackbits(packed, axis=1, count=count, bitorder="little").view(np.bool_))

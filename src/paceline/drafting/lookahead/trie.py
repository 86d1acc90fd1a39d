"""Tries of what followed each token: grown lazily from a backlog, ranked on demand, squeezed when they grow too large.

Prompts and outputs live in forests of their own. A request's prompt forest is dropped with the request, so a released prompt cannot be
drafted from, by construction; outputs stay. Adding text only notes where it stands: a tree is brought up to date when it is asked for, and
by `settle`, in bounded chunks, so that insertion stays off the critical path and yet depends on no clock.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol, TypeAlias

Candidate: TypeAlias = "tuple[float, int, Source, int]"  # score, token, what follows it, kind of evidence

KINDS = 8  # kinds of evidence that one source can give: four levels of share, each seen once or more often
NODE_BYTES = 220  # of a node with its entry in the dictionary above it
BACKLOG_BYTES = 80


class Source(Protocol):
    """Something that ranks what comes next. Scores never grow on the way down, so the best k nodes are found best-first."""

    def ranking(self) -> Many[Candidate]:
        """Candidates, best first."""


class Node:
    """A token in its context, and how often it was seen there."""

    __slots__ = ("below", "freq", "ranked")

    def __init__(self, freq: float = 0.0) -> None:
        self.freq = freq
        self.below: dict[int, Node] = {}
        self.ranked: list[Candidate] | None = None

    def ranking(self) -> list[Candidate]:
        """Children by frequency, newest first among equals; kept until a count changes."""
        ranked = self.ranked
        if ranked is None:
            total = self.freq
            ranked = [(child.freq, token, child, _kind(child.freq, total)) for token, child in reversed(self.below.items())]
            if len(ranked) > 1:
                ranked.sort(key=_score, reverse=True)  # stable
            self.ranked = ranked
        return ranked

    def count(self) -> int:
        """Nodes of the subtree, this one left out."""
        total, stack = 0, [self]
        while stack:
            node = stack.pop()
            total += len(node.below)
            stack.extend(node.below.values())
        return total


def _score(candidate: Candidate) -> float:
    return candidate[0]


def _kind(freq: float, total: float) -> int:
    """Class of evidence: the child's share of its parent's count, and whether it was seen more than once."""
    share = freq / total if total > 0 else 0.0
    level = 3 if share > 0.95 else 2 if share > 0.6 else 1 if share > 0.3 else 0
    return 2 * level + (freq > 1.5)


class Tree:
    """All that followed one token. `backlog` holds places in text that are not inserted yet: a segment and the index of the root in it."""

    __slots__ = ("backlog", "root", "size")

    def __init__(self) -> None:
        self.root = Node()
        self.size = 0  # nodes below the root
        self.backlog: list[tuple[tuple[int, ...], int]] = []

    def insert(self, path: Many[int]) -> None:
        """Count one occurrence of every prefix of `path`."""
        node = self.root
        node.freq += 1.0
        for token in path:
            child = node.below.get(token)
            if child is None:
                child = node.below[token] = Node()
                self.size += 1
            child.freq += 1.0
            node.ranked = None
            node = child

    def squeeze(self) -> None:
        """Halve every count above one and drop everything else."""
        stack = [self.root]
        self.root.freq *= 0.5
        while stack:
            node = stack.pop()
            node.below = {token: child for token, child in node.below.items() if child.freq > 1}
            node.ranked = None
            for child in node.below.values():
                child.freq *= 0.5
            stack.extend(node.below.values())
        self.size = self.root.count()


class Forest:
    """One tree per token.

    Args:
        depth: tokens kept behind a root.
        limit: nodes beyond which a tree grows no more; `None` lets it grow until it is squeezed.
    """

    def __init__(self, depth: int, limit: int | None = None) -> None:
        self.depth, self.limit = depth, limit
        self.trees: dict[int, Tree] = {}
        self.changed: set[int] = set()  # roots whose trees grew since sizes were last checked
        self._behind: dict[int, None] = {}  # roots with a backlog, oldest first
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Positions not inserted yet."""
        return self._waiting

    @property
    def size(self) -> int:
        """Nodes below all roots."""
        return sum(tree.size for tree in self.trees.values())

    def add(self, segment: tuple[int, ...], start: int, stop: int, skip: frozenset[int] = frozenset()) -> None:
        """Note the positions `start..stop` of a segment as roots, to be inserted later.

        Args:
            segment: text without end-of-sequence ids; continuations end with it.
            skip: ids that root no tree.
        """
        trees, behind = self.trees, self._behind
        for at in range(start, min(stop, len(segment) - 1)):  # the last token has no continuation
            token = segment[at]
            if token in skip:
                continue
            tree = trees.get(token)
            if tree is None:
                tree = trees[token] = Tree()
            if not tree.backlog:
                behind[token] = None
            tree.backlog.append((segment, at))
            self._waiting += 1

    def settle(self, limit: int | None = None) -> int:
        """Insert up to `limit` waiting positions (all by default); returns how many were."""
        done = 0
        while self._behind and (limit is None or done < limit):
            done += self._update(next(iter(self._behind)), None if limit is None else limit - done)
        return done

    def find(self, query: Many[int], chunk: int | None = None) -> Node | None:
        """What followed `query`, or nothing. Its tree is brought up to date first, by at most `chunk` positions."""
        tree = self.trees.get(query[0])
        if tree is None:
            return None
        if tree.backlog:
            self._update(query[0], chunk)
        node: Node | None = tree.root
        for token in query[1:]:
            node = node.below.get(token) if node is not None else None
        return node

    def squeeze(self, bound: int) -> None:
        """Squeeze every changed tree of more than `bound` nodes until it has no more."""
        for token in self.changed:
            tree = self.trees[token]
            while tree.size > bound:
                tree.squeeze()
            if not tree.size and not tree.backlog:
                del self.trees[token]
        self.changed.clear()

    def memory_bytes(self) -> int:
        """An estimate: dictionaries and counters of all nodes, and the backlog."""
        return NODE_BYTES * (self.size + len(self.trees)) + BACKLOG_BYTES * self._waiting

    def _update(self, token: int, limit: int | None) -> int:
        """Insert waiting positions of one tree, newest first."""
        tree = self.trees[token]
        count = len(tree.backlog) if limit is None else min(limit, len(tree.backlog))
        for _ in range(count):
            segment, at = tree.backlog.pop()
            if self.limit is None or tree.size < self.limit:
                tree.insert(segment[at + 1 : at + 1 + self.depth])
        self._waiting -= count
        self.changed.add(token)
        if not tree.backlog:
            del self._behind[token]
        return count


def segments(tokens: Many[int], eos: frozenset[int]) -> list[tuple[int, ...]]:
    """The stretches between end-of-sequence ids."""
    if eos.isdisjoint(tokens):
        return [tuple(tokens)]
    found: list[list[int]] = [[]]
    for token in tokens:
        if token in eos:
            found.append([])
        else:
            found[-1].append(token)
    return [tuple(part) for part in found if part]

"""The prefix cache: a radix tree from token ids to the slots that hold their keys and values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from paceline.memory import runs as spans
from paceline.memory.holders import SlotBook
from paceline.memory.runs import Run

Tokens = np.ndarray[tuple[int], np.dtype[np.int64]]


class Node:
    """An edge of the tree: its tokens, and the runs that hold them."""

    __slots__ = ("below", "parent", "runs", "tokens", "used")

    def __init__(self, tokens: Tokens, runs: list[Run], parent: Node | None, used: int) -> None:
        self.tokens, self.runs, self.parent, self.used = tokens, runs, parent, used
        self.below: dict[int, Node] = {}


class RadixCache:
    """Committed tokens of released sequences, for later sequences that begin the same way.

    The tree is one holder of each of its slots; sequences that attach a prefix are further holders. Namespaces (a tenant, a model
    configuration) never see each other's entries.

    Args:
        book: the holder counts of the slots.
    """

    def __init__(self, book: SlotBook) -> None:
        self.book = book
        self._roots: dict[Hashable, Node] = {}
        self._clock = 0

    def match(self, ids: Sequence[int], namespace: Hashable = None) -> list[Run]:
        """Runs of the longest cached prefix of `ids`; its entries count as just used. The caller becomes a holder by retaining them."""
        found: list[Run] = []
        for node, count in self._walk(np.asarray(ids, dtype=np.int64), namespace):
            spans.append(found, spans.cut(node.runs, 0, count))
        return found

    def insert(self, ids: Sequence[int], runs: list[Run], namespace: Hashable = None) -> int:
        """Keep the slots of a sequence's tokens.

        Where the tree already knows a prefix of `ids`, its own slots stay and the sequence's duplicates are left alone, for the caller
        to release.

        Args:
            ids: one token per logical slot of `runs`.

        Returns:
            How many leading tokens were known already.
        """
        tokens = np.array(ids, dtype=np.int64)  # a copy: the tree outlives the caller's list
        path = list(self._walk(tokens, namespace))
        at = sum(count for _, count in path)
        if at == len(tokens):
            return at
        node, used = path[-1] if path else (self._root(namespace), 0)
        if used < len(node.tokens):
            node = self._split(node, used)
        fresh = Node(tokens[at:], spans.cut(runs, at, len(tokens)), node, self._clock)
        self.book.retain(fresh.runs, cache=True)
        node.below[int(tokens[at])] = fresh
        return at

    def evict(self, slots: int) -> int:
        """Forget least recently used entries until that many slots became free or nothing is left to free.

        Returns:
            Slots freed, more than asked for where an entry is larger.
        """
        freed = 0
        while freed < slots and self.book.evictable:
            leaves = sorted((node for node in self._nodes() if not node.below), key=lambda leaf: leaf.used)
            kept = ((leaf, self._held_until(leaf)) for leaf in leaves)
            # A leaf that sequences hold to its end frees nothing. It goes only when all are like that, and stand before one that would.
            victim, keep = next(((leaf, keep) for leaf, keep in kept if keep < len(leaf.tokens)), (leaves[0], 0))
            freed += self._trim(victim, keep)
        return freed

    def clear(self) -> None:
        """Forget everything."""
        for node in self._nodes():
            self.book.release(node.runs, cache=True)
        self._roots.clear()

    def entries(self) -> list[list[Run]]:
        """Runs of every entry, for inspection."""
        return [node.runs for node in self._nodes()]

    def _root(self, namespace: Hashable) -> Node:
        if namespace not in self._roots:
            self._roots[namespace] = Node(np.empty(0, dtype=np.int64), [], None, 0)
        return self._roots[namespace]

    def _walk(self, tokens: Tokens, namespace: Hashable) -> Iterator[tuple[Node, int]]:
        """Nodes along the longest known prefix of `tokens`, with how many of each node's tokens belong to it."""
        self._clock += 1
        node, at = self._roots.get(namespace), 0
        while node is not None and at < len(tokens):
            node = node.below.get(int(tokens[at]))
            if node is None:
                return
            count = _common(node.tokens, tokens[at:])
            node.used = self._clock
            yield node, count
            if count < len(node.tokens):
                return
            at += count

    def _split(self, node: Node, at: int) -> Node:
        """Cut an edge in two; returns the upper part."""
        assert node.parent is not None
        upper = Node(node.tokens[:at], spans.cut(node.runs, 0, at), node.parent, node.used)
        node.parent.below[int(upper.tokens[0])] = upper
        node.runs = spans.cut(node.runs, at, len(node.tokens))
        node.tokens, node.parent = node.tokens[at:], upper
        upper.below[int(node.tokens[0])] = node
        return upper

    def _held_until(self, leaf: Node) -> int:
        """Leading tokens of a leaf that cannot be freed because a sequence holds one at or behind them."""
        return self.book.alone_from(leaf.runs, len(leaf.tokens))

    def _trim(self, leaf: Node, keep: int) -> int:
        """Forget a leaf's tokens from `keep` on; returns the slots this freed."""
        before = self.book.free
        self.book.release(spans.cut(leaf.runs, keep, len(leaf.tokens)), cache=True)
        if keep:
            leaf.tokens, leaf.runs = leaf.tokens[:keep], spans.cut(leaf.runs, 0, keep)
        else:
            assert leaf.parent is not None
            del leaf.parent.below[int(leaf.tokens[0])]
        return self.book.free - before

    def _nodes(self) -> list[Node]:
        """All entries, parents before children."""
        found: list[Node] = []
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                found.append(node)
            stack.extend(node.below.values())
        return found


def _common(left: Tokens, right: Tokens) -> int:
    """Length of the common prefix."""
    count = min(len(left), len(right))
    different = np.flatnonzero(left[:count] != right[:count])
    return int(different[0]) if len(different) else count

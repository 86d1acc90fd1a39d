"""Tries of what followed each token, kept as bags of places in text: a node counts the weights of the places that pass through it.

Prompts and outputs live in forests of their own. A request's prompt forest is dropped with the request, so a released prompt cannot be
drafted from, by construction; outputs stay. No node is ever stored. Adding text appends where it stands, and that is all: nothing waits to
be inserted, and nothing has to be brought up to date. Which nodes there are is worked out when a tree is asked, for those that matter only.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many

import numpy as np

from paceline.kernels.foresting import RECORD, squeezer

Text = tuple[int, ...]

KINDS = 8  # kinds of evidence that one source can give: four levels of share, each seen once or more often
SURE = 6  # kind of a token that nothing else ever followed, seen once
LOOKED = 4096  # places of a tree, newest ones, that a question looks at: it takes well below a millisecond however much there is
LITTLE = 1 << 16  # tokens of text that are never worth tidying up


def kind_of(freq: float, total: float) -> int:
    """Class of evidence: a token's share of its parent's count, and whether it was seen more than once."""
    share = freq / total if total > 0 else 0.0
    level = 3 if share > 0.95 else 2 if share > 0.6 else 1 if share > 0.3 else 0
    return 2 * level + (freq > 1.5)


class Forest:
    """One tree per token: the places where it stood, oldest first, as three numbers each.

    These are where what follows the token begins and ends in the text, and what it counts.

    Args:
        depth: tokens kept behind a root.
        limit: tokens behind a root beyond which its tree takes no more; `None` lets it grow until it is squeezed.
    """

    def __init__(self, depth: int, limit: int | None = None) -> None:
        self.depth = depth
        self.text: array[int] = array("i")
        self.trees: dict[int, array[float]] = {}
        self.changed: set[int] = set()  # roots whose trees grew since sizes were last checked
        self._full = None if limit is None else RECORD * -(-limit // max(1, depth))
        self._tidied = LITTLE  # length of the text when it was last tidied up

    def add(self, segment: Many[int], start: int, stop: int, skip: frozenset[int] = frozenset()) -> None:
        """Note the positions `start..stop` of a segment as roots.

        Args:
            segment: text without end-of-sequence ids; continuations end with it.
            skip: ids that root no tree.
        """
        stop = min(stop, len(segment) - 1)  # the last token has no continuation
        if stop <= start or not self.depth:
            return
        at = self._write(array("i", segment[start : stop + self.depth]))
        depth, trees, full, end = self.depth, self.trees, self._full, len(self.text)
        for token in segment[start:stop]:
            at += 1
            if token in skip:
                continue
            tree = trees.get(token)
            if tree is None:
                tree = trees[token] = array("d")
            elif full is not None and len(tree) >= full:
                continue
            tree.extend((at, min(at + depth, end), 1.0))
            self.changed.add(token)

    def plant(self, root: int, path: Many[int], weight: float) -> None:
        """Let a path below a root count so much more."""
        at = len(self.text)
        self.text.extend(path)
        self.trees.setdefault(root, array("d")).extend((at, at + len(path), weight))

    def nodes(self, root: int) -> list[tuple[int, int, float]]:
        """A tree node by node in pre-order, siblings oldest first: token, parent and count; the root itself is the first."""
        text, tree = self.text, self.trees[root]
        places = list(zip(map(int, tree[::RECORD]), map(int, tree[1::RECORD]), tree[2::RECORD], strict=True))
        found: list[tuple[int, int, float]] = []
        stack = [(root, -1, places)]
        while stack:
            token, parent, here = stack.pop()
            me = len(found)
            found.append((token, parent, sum(weight for _, _, weight in here)))
            below: dict[int, list[tuple[int, int, float]]] = {}
            for at, stop, weight in here:
                if at < stop:
                    below.setdefault(text[at], []).append((at + 1, stop, weight))
            stack.extend((child, me, below[child]) for child in reversed(below))
        return found

    def squeeze(self, bound: int) -> None:
        """Squeeze every changed tree of more than `bound` nodes until it has no more: halve every count above one, drop everything else.

        For a place this means to end before the first node that counts no more than one, and to weigh half.
        """
        shrink = squeezer() or squeeze
        for token in self.changed:
            tree = self.trees[token]
            shrink(self.text, tree, bound)
            if not tree:
                del self.trees[token]
        self.changed.clear()
        if len(self.text) > 2 * self._tidied:
            self._tidy()
            self._tidied = max(LITTLE, len(self.text))

    def memory_bytes(self) -> int:
        """Bytes of text and places, with the room they have to grow."""
        return self.text.__sizeof__() + self.trees.__sizeof__() + sum(tree.__sizeof__() for tree in self.trees.values())

    def _write(self, new: array[int]) -> int:
        """Have a piece of text; returns where it begins. What ends the text already is not written again: pieces of an answer overlap."""
        text, depth = self.text, self.depth
        at = len(text) - depth
        if at >= 0 and text[at:] == new[:depth]:
            text.extend(new[depth:])
            return at
        text.extend(new)
        return at + depth

    def _tidy(self) -> None:
        """Drop text that no place needs."""
        if not self.trees:
            self.text = array("i")
            return
        starts, stops = (np.concatenate([np.frombuffer(tree)[side::RECORD] for tree in self.trees.values()]).astype(int) for side in (0, 1))
        edges = np.bincount(starts, minlength=len(self.text) + 1) - np.bincount(stops, minlength=len(self.text) + 1)
        needed = np.cumsum(edges)[:-1] > 0
        moved = np.concatenate([[0], np.cumsum(needed)])  # what stands where is left of it
        for tree in self.trees.values():
            places = np.frombuffer(tree).reshape(-1, RECORD)
            places[:, :2] = moved[places[:, :2].astype(int)]
        self.text = array("i", np.frombuffer(self.text, np.int32)[needed].tobytes())


def squeeze(text: Many[int], tree: array[float], bound: int) -> None:
    """What the kernel does, in plain Python: squeeze one tree until it has at most `bound` nodes."""
    starts, weights = [int(start) for start in tree[::RECORD]], list(tree[2::RECORD])
    ends = [int(stop) for stop in tree[1::RECORD]]
    while True:
        kept = list(starts)
        nodes = 0
        stack: list[tuple[int, Many[int]]] = [(0, range(len(starts)))]
        while stack:
            depth, places = stack.pop()
            below: dict[int, list[int]] = {}
            for place in places:
                if starts[place] + depth < ends[place]:
                    below.setdefault(text[starts[place] + depth], []).append(place)
            nodes += len(below)
            for group in below.values():
                if sum(weights[place] for place in group) > 1:
                    for place in group:
                        kept[place] = starts[place] + depth + 1
                stack.append((depth + 1, group))
        if nodes <= bound:
            break
        ends, weights = kept, [0.5 * weight for weight in weights]
    del tree[:]
    for start, end, weight in zip(starts, ends, weights, strict=True):
        if end > start:
            tree.extend((start, end, weight))


def segments(tokens: Many[int], eos: frozenset[int]) -> list[tuple[int, Text]]:
    """The stretches between end-of-sequence ids, and the index that each begins at."""
    if eos.isdisjoint(tokens):
        return [(0, tuple(tokens))]
    found: list[tuple[int, Text]] = []
    begin = 0
    for at in (*(at for at, token in enumerate(tokens) if token in eos), len(tokens)):
        if at > begin:
            found.append((begin, tuple(tokens[begin:at])))
        begin = at + 1
    return found

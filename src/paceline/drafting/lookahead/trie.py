"""Tries of what followed each token: stretches without a branch are kept as places in text, grown from a backlog, squeezed when large.

Prompts and outputs live in forests of their own. A request's prompt forest is dropped with the request, so a released prompt cannot be
drafted from, by construction; outputs stay. Adding text only notes where it stands: a tree is brought up to date when it is asked for, and
by `settle`, in bounded chunks, so that insertion stays off the critical path and yet depends on no clock.

Nearly all of such a trie is unbranched: soon behind a root every context is unique. So a branch is one object that points into the text it
came from (Morrison 1968, PATRICIA), however long it is: it costs one insertion, and is drafted by one slice.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from operator import itemgetter

Text = tuple[int, ...]
Ranked = tuple[float, "Branch", int]  # count, branch, kind of evidence for its first token

KINDS = 8  # kinds of evidence that one source can give: four levels of share, each seen once or more often
SURE = 6  # kind of a token that nothing else ever followed, seen once
BRANCH_BYTES = 230  # of a branch with its entry in the dictionary above it
BACKLOG_BYTES = 80

_count = itemgetter(0)


class Branch:
    """Tokens `text[start:stop]` that follow one another without alternatives, all seen `freq` times here, and what comes behind them."""

    __slots__ = ("below", "freq", "ranked", "start", "stop", "text")

    def __init__(self, text: Text, start: int, stop: int, freq: float) -> None:
        self.text, self.start, self.stop, self.freq = text, start, stop, freq
        self.below: dict[int, Branch] | None = None  # by first token, oldest first
        self.ranked: list[Ranked] | None = None

    @property
    def tokens(self) -> Text:
        """All of them."""
        return self.text[self.start : self.stop]

    def ranking(self) -> list[Ranked]:
        """What comes behind by count, newest first among equals; kept until a count changes."""
        ranked = self.ranked
        if ranked is None:
            total = self.freq
            below = () if self.below is None else reversed(self.below.values())
            ranked = [(branch.freq, branch, kind_of(branch.freq, total)) for branch in below]
            if len(ranked) > 1:
                ranked.sort(key=_count, reverse=True)  # stable
            self.ranked = ranked
        return ranked

    def rest(self, offset: int) -> list[Ranked]:
        """What is left of the branch behind its first `offset` tokens, as the only thing that comes next there."""
        rest = Branch(self.text, self.start + offset, self.stop, self.freq)
        rest.below, rest.ranked = self.below, self.ranked
        return [(self.freq, rest, SURE + (self.freq > 1.5))]

    def cut(self, length: int) -> None:
        """Let the branch end after `length` tokens; the others become what comes behind."""
        ((_, rest, _),) = self.rest(length)
        self.stop = self.start + length
        self.below, self.ranked = {rest.text[rest.start]: rest}, None


def kind_of(freq: float, total: float) -> int:
    """Class of evidence: a token's share of its parent's count, and whether it was seen more than once."""
    share = freq / total if total > 0 else 0.0
    level = 3 if share > 0.95 else 2 if share > 0.6 else 1 if share > 0.3 else 0
    return 2 * level + (freq > 1.5)


class Tree:
    """All that followed one token. `backlog` holds places in text that are not inserted yet: a segment and the index of the root in it."""

    __slots__ = ("backlog", "branches", "root", "size")

    def __init__(self) -> None:
        self.root = Branch((), 0, 0, 0.0)
        self.size = 0  # tokens below the root
        self.branches = 0
        self.backlog: list[tuple[Text, int]] = []

    def insert(self, text: Text, at: int, stop: int) -> None:
        """Count one occurrence of every prefix of `text[at:stop]`."""
        here = self.root
        here.freq += 1.0
        here.ranked = None
        while at < stop:
            if here.below is None:
                here.below = {}
            branch = here.below.get(text[at])
            if branch is None:
                here.below[text[at]] = Branch(text, at, stop, 1.0)
                self.size += stop - at
                self.branches += 1
                return
            shared = _shared(branch.text, branch.start, text, at, min(branch.stop - branch.start, stop - at))
            if shared < branch.stop - branch.start:
                branch.cut(shared)
                self.branches += 1
            branch.freq += 1.0
            branch.ranked = None  # what comes behind has a smaller share now
            here = branch
            at += shared

    def squeeze(self) -> None:
        """Halve every count above one and drop everything else."""
        self.root.freq *= 0.5
        self.size = self.branches = 0
        stack = [self.root]
        while stack:
            branch = stack.pop()
            branch.ranked = None
            kept = {} if branch.below is None else {token: child for token, child in branch.below.items() if child.freq > 1}
            branch.below = kept or None
            for child in kept.values():
                child.freq *= 0.5
                self.size += child.stop - child.start
                self.branches += 1
                stack.append(child)


def _shared(one: Text, first: int, other: Text, second: int, most: int) -> int:
    """How many tokens two places of text have in common, up to `most`; their first ones are known to agree."""
    if one[first : first + most] == other[second : second + most]:
        return most
    length = 1
    while one[first + length] == other[second + length]:
        length += 1
    return length


class Place:
    """A place in a trie: behind the first `offset` tokens of a branch."""

    __slots__ = ("branch", "offset")

    def __init__(self, branch: Branch, offset: int) -> None:
        self.branch, self.offset = branch, offset

    @property
    def freq(self) -> float:
        """How often text came by here."""
        return self.branch.freq

    def step(self, token: int) -> Place | None:
        """One token further."""
        branch = self.branch
        at = branch.start + self.offset
        if at < branch.stop:
            return Place(branch, self.offset + 1) if branch.text[at] == token else None
        below = None if branch.below is None else branch.below.get(token)
        return None if below is None else Place(below, 1)

    def ranking(self) -> list[Ranked]:
        """What comes next, best first."""
        branch = self.branch
        return branch.ranking() if branch.start + self.offset == branch.stop else branch.rest(self.offset)


class Forest:
    """One tree per token.

    Args:
        depth: tokens kept behind a root.
        limit: tokens beyond which a tree grows no more; `None` lets it grow until it is squeezed.
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
        """Tokens below all roots."""
        return sum(tree.size for tree in self.trees.values())

    def add(self, segment: Text, start: int, stop: int, skip: frozenset[int] = frozenset()) -> None:
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

    def find(self, query: Many[int], chunk: int | None = None) -> Place | None:
        """The place that `query` leads to, or nothing. Its tree is brought up to date first, by at most `chunk` positions."""
        tree = self.trees.get(query[0])
        if tree is None:
            return None
        if tree.backlog:
            self._update(query[0], chunk)
        place: Place | None = Place(tree.root, 0)
        for token in query[1:]:
            place = place.step(token) if place is not None else None
        return place

    def squeeze(self, bound: int) -> None:
        """Squeeze every changed tree of more than `bound` tokens until it has no more."""
        for token in self.changed:
            tree = self.trees[token]
            while tree.size > bound:
                tree.squeeze()
            if not tree.size and not tree.backlog:
                del self.trees[token]
        self.changed.clear()

    def memory_bytes(self) -> int:
        """An estimate: branches with their counters, and the backlog."""
        return BRANCH_BYTES * (sum(tree.branches for tree in self.trees.values()) + len(self.trees)) + BACKLOG_BYTES * self._waiting

    def _update(self, token: int, limit: int | None) -> int:
        """Insert waiting positions of one tree, newest first."""
        tree = self.trees[token]
        count = len(tree.backlog) if limit is None else min(limit, len(tree.backlog))
        for _ in range(count):
            segment, at = tree.backlog.pop()
            if self.limit is None or tree.size < self.limit:
                tree.insert(segment, at + 1, min(at + 1 + self.depth, len(segment)))
        self._waiting -= count
        self.changed.add(token)
        if not tree.backlog:
            del self._behind[token]
        return count


def segments(tokens: Many[int], eos: frozenset[int]) -> list[Text]:
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

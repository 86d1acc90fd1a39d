"""From matched sources to a draft: the best nodes of a trie, of two tries together, as a tree, as branches side by side, or one branch."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import itemgetter

from paceline.core.tree import TokenTree
from paceline.drafting.lookahead.trie import KINDS, SURE, Branch, Place, Ranked

Candidate = tuple[float, "Branch | Joint", int]  # score, tokens and what comes behind them, kind of evidence for the first of them

_score = itemgetter(0)


@dataclass(slots=True)
class Picked:
    """Nodes below the pending token, parents before children; parent -1 is the pending token itself.

    Args:
        kind: the class of evidence each node rests on; acceptance is estimated per class.
    """

    token: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token)

    def add(self, token: int, parent: int, kind: int) -> int:
        """Append a node; returns its index."""
        self.token.append(token)
        self.parent.append(parent)
        self.kind.append(kind)
        return len(self.token) - 1

    def kept(self, keep: Many[bool]) -> Picked:
        """Only the marked nodes; a marked node's parent must be marked."""
        if all(keep):
            return self
        place = {-1: -1}
        left = Picked()
        for node, wanted in enumerate(keep):
            if wanted:
                place[node] = left.add(self.token[node], place[self.parent[node]], self.kind[node])
        return left

    def in_preorder(self) -> Picked:
        """The same nodes depth first, siblings in their order."""
        if all(parent == at - 1 for at, parent in enumerate(self.parent)):
            return self  # a chain
        below: list[list[int]] = [[] for _ in range(len(self.token) + 1)]  # the last entry belongs to parent -1
        for node in range(len(self.token) - 1, -1, -1):
            below[self.parent[node]].append(node)
        ordered = Picked()
        place = [-1] * (len(self.token) + 1)
        stack = below[-1]
        while stack:
            node = stack.pop()
            place[node] = ordered.add(self.token[node], place[self.parent[node]], self.kind[node])
            stack.extend(below[node])
        return ordered

    def tree(self, pending: int) -> TokenTree:
        """The draft; nodes must be in pre-order."""
        return TokenTree((pending, *self.token), (-1, *(parent + 1 for parent in self.parent)))


@dataclass(slots=True)
class Runs:
    """Stretches of tokens in the order they were picked, each behind the end of another: a draft before it is laid out node by node.

    Args:
        tokens: of each stretch.
        parent: the stretch it continues; -1 is the pending token.
        kind: class of evidence of its first token.
        rest: and of its others.
    """

    tokens: list[tuple[int, ...]] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)

    def want(self, others: Runs, wanted: list[int]) -> None:
        """Mark stretches of the same tree of candidates, and add those that are missing.

        Args:
            wanted: tokens wanted of each stretch; grows with the stretches.
        """
        places = {(parent, tokens[0]): run for run, (parent, tokens) in enumerate(zip(self.parent, self.tokens, strict=True))}
        ends: list[int] = []  # the stretch at whose end each of the others ends
        for tokens, above, kind, rest in zip(others.tokens, others.parent, others.kind, others.rest, strict=True):
            here, at = ends[above] if above >= 0 else -1, 0
            while at < len(tokens):
                run = places.get((here, tokens[at]))
                if run is None:
                    run = places[here, tokens[at]] = len(self.tokens)
                    self.tokens.append(tokens[at:])
                    self.parent.append(here)
                    self.kind.append(rest if at else kind)
                    self.rest.append(rest)
                    wanted.append(0)
                shared = min(len(self.tokens[run]), len(tokens) - at)
                wanted[run] = max(wanted[run], shared)
                here, at = run, at + shared
            ends.append(here)

    def trimmed(self, wanted: Many[int]) -> Runs:
        """The first so many tokens of each stretch."""
        left = Runs()
        place = {-1: -1}
        for run, count in enumerate(wanted):
            if count:
                place[run] = len(left.tokens)
                left.tokens.append(self.tokens[run][:count])
                left.parent.append(place[self.parent[run]])
                left.kind.append(self.kind[run])
                left.rest.append(self.rest[run])
        return left

    def picked(self) -> Picked:
        """The nodes, depth first with siblings in the order they were picked."""
        picked = Picked()
        token, parent, kind = picked.token, picked.parent, picked.kind
        last = [-1] * (len(self.tokens) + 1)  # node that ends each stretch; the final entry belongs to parent -1
        for run in self._preorder():
            tokens = self.tokens[run]
            at, end = len(token), len(token) + len(tokens) - 1
            token.extend(tokens)
            parent.append(last[self.parent[run]])
            parent.extend(range(at, end))
            kind.append(self.kind[run])
            if end > at:
                kind.extend([self.rest[run]] * (end - at))
            last[run] = end
        return picked

    def _preorder(self) -> list[int]:
        below: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]  # the last entry belongs to parent -1
        for run in range(len(self.tokens) - 1, -1, -1):
            below[self.parent[run]].append(run)
        order: list[int] = []
        stack = below[-1]
        while stack:
            run = stack.pop()
            order.append(run)
            stack.extend(below[run])
        return order


class Joint:
    """Tokens that go on alike in the prompt and in earlier outputs: `score = (1 - weight) * prompt + weight * outputs`.

    Args:
        prompt, outputs: branches that begin with the same token.
        weight: of outputs.
        most: outputs-only candidates beyond this many at one place cannot be picked and are not looked at.
    """

    __slots__ = ("most", "outputs", "prompt", "start", "stop", "text", "weight")

    def __init__(self, prompt: Branch, outputs: Branch, weight: float, most: int) -> None:
        self.prompt, self.outputs, self.weight, self.most = prompt, outputs, weight, most
        mine, other = prompt.tokens, outputs.tokens
        shared = min(len(mine), len(other))
        if mine[:shared] != other[:shared]:
            shared = next(at for at, (one, two) in enumerate(zip(mine, other, strict=False)) if one != two)
        self.text, self.start, self.stop = prompt.text, prompt.start, prompt.start + shared

    def ranking(self) -> list[Candidate]:
        """What comes behind, best first."""
        shared = self.stop - self.start
        prompt, outputs = Place(self.prompt, shared), Place(self.outputs, shared)
        return together(prompt.ranking(), outputs.ranking(), self.weight, self.most)


def together(prompt: list[Ranked], outputs: list[Ranked], weight: float, most: int) -> list[Candidate]:
    """Candidates of both sources by common score; those that both know are one."""
    merged: list[Candidate] = []
    known: dict[int, tuple[float, Branch]] = {branch.text[branch.start]: (freq, branch) for freq, branch, _ in outputs} if prompt else {}
    for freq, branch, kind in prompt:
        found = known.pop(branch.text[branch.start], None)
        if found is None:
            merged.append(((1 - weight) * freq, branch, kind))
        else:
            merged.append(((1 - weight) * freq + weight * found[0], Joint(branch, found[1], weight, most), kind + KINDS))
    for freq, branch, kind in outputs[:most]:
        if not prompt or branch.text[branch.start] in known:
            merged.append((weight * freq, branch, kind))
    if len(merged) > 1:
        merged.sort(key=_score, reverse=True)
    return merged


def best_first(siblings: Many[Candidate], budget: int, depth: int) -> Runs:
    """The `budget` highest-scoring nodes at most `depth` deep, in descending score; among equals the branch begun last goes on.

    Scores never grow on the way down, and along a stretch they stay the same, so a stretch is picked whole.
    """
    runs = Runs()
    if budget < 1 or depth < 1 or not siblings:
        return runs
    heap: list[tuple[float, int, Many[Candidate], int, int, int, float]] = []
    at, parent, level = 0, -1, 1
    scale = 1.0  # of the siblings' scores: below a branch of one source alone, counts weigh as much as its own did
    tie = 0
    while True:
        score, found, kind = siblings[at]
        length = found.stop - found.start
        taken = min(length, depth - level + 1, budget)
        me = len(runs.tokens)
        runs.tokens.append(found.text[found.start : found.start + taken])
        runs.parent.append(parent)
        runs.kind.append(kind)
        runs.rest.append(SURE + (found.freq > 1.5) if isinstance(found, Branch) else SURE + KINDS + (found.prompt.freq > 1.5))
        budget -= taken
        if not budget:
            break
        at += 1
        if at < len(siblings):  # a sibling enters the race when the one before it has been picked
            tie -= 1
            heappush(heap, (-siblings[at][0] * scale, tie, siblings, at, parent, level, scale))
        if taken == length and level + length <= depth:
            below = found.ranking()
            if below:
                scale = score * scale / found.freq if isinstance(found, Branch) else 1.0
                if not heap or below[0][0] * scale >= -heap[0][0]:  # the common case, a chain, needs no heap
                    siblings, at, parent, level = below, 0, me, level + length
                    continue
                tie -= 1
                heappush(heap, (-below[0][0] * scale, tie, below, 0, me, level + length, scale))
        if not heap:
            break
        _, _, siblings, at, parent, level, scale = heappop(heap)
    return runs


def best_branch(place: Place, depth: int) -> Picked:
    """The best child of the best child, and so on."""
    runs = Runs()
    here, left = place.ranking(), depth
    while here and left > 0:
        _, branch, kind = here[0]
        runs.tokens.append(branch.tokens[:left])
        runs.parent.append(len(runs.parent) - 1)
        runs.kind.append(kind)
        runs.rest.append(SURE + (branch.freq > 1.5))
        left -= len(runs.tokens[-1])
        here = branch.ranking()
    return runs.picked()


def mixed(prompt: Place, outputs: Place, weight: float, budget: int, depth: int, reserve: tuple[int, int]) -> Picked:
    """The best nodes of both sources. Where there are more than `budget`, some are reserved for the best of one source alone.

    Args:
        weight: of outputs in the common score.
        reserve: nodes kept for prompt and outputs.
    """
    runs = best_first(together(prompt.ranking(), outputs.ranking(), weight, budget), budget + 1, depth)
    if sum(map(len, runs.tokens)) <= budget:
        return runs.picked()
    wanted = [0] * len(runs.tokens)  # tokens of each stretch; what continues a stretch is wanted only with all of it
    for source, count in zip((prompt, outputs), reserve, strict=True):
        runs.want(best_first(source.ranking(), count, depth), wanted)
    left = budget - sum(wanted)
    for run, tokens in enumerate(runs.tokens):  # best first
        more = min(len(tokens) - wanted[run], left)
        wanted[run] += more
        left -= more
    return runs.trimmed(wanted).picked()


def side_by_side(tree: Picked, most: int) -> Picked:
    """Every leaf as a branch of its own from the pending token, shared tokens repeated, until there are `most` nodes.

    Args:
        tree: in pre-order.
    """
    inner = set(tree.parent)
    flat = Picked()
    for leaf in range(len(tree)):
        if leaf in inner:
            continue
        path = []
        node = leaf
        while node >= 0:
            path.append(node)
            node = tree.parent[node]
        above = -1
        for node in path[::-1][: most - len(flat)]:
            above = flat.add(tree.token[node], above, tree.kind[node])
        if len(flat) == most:
            break
    return flat

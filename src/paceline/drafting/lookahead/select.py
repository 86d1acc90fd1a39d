"""From matched sources to a draft: the best nodes of a trie, of two tries together, as a tree, as branches side by side, or one branch."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import itemgetter

from paceline.core.tree import TokenTree
from paceline.drafting.lookahead.trie import KINDS, Candidate, Node, Source

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


class Both:
    """The same context in the prompt and in earlier outputs: `score = (1 - weight) * prompt + weight * outputs`.

    Args:
        prompt, outputs: what followed there.
        weight: of outputs.
        most: outputs-only candidates beyond this many at one place cannot be picked and are not looked at.
    """

    __slots__ = ("most", "outputs", "prompt", "weight")

    def __init__(self, prompt: Node, outputs: Node, weight: float, most: int) -> None:
        self.prompt, self.outputs, self.weight, self.most = prompt, outputs, weight, most

    def ranking(self) -> list[Candidate]:
        weight, most = self.weight, self.most
        prompt, outputs = self.prompt.below, self.outputs.below
        if len(prompt) == 1 == len(outputs) and prompt.keys() == outputs.keys():  # both go on alike, the common case
            ((freq, token, _, kind),) = self.prompt.ranking()
            score = (1 - weight) * freq + weight * outputs[token].freq
            return [(score, token, Both(prompt[token], outputs[token], weight, most), kind + KINDS)]
        merged: list[Candidate] = []
        for freq, token, _, kind in self.prompt.ranking():
            mine, other = prompt[token], outputs.get(token)
            if other is None:
                merged.append(((1 - weight) * freq, token, mine, kind))
            else:
                score = (1 - weight) * freq + weight * other.freq
                merged.append((score, token, Both(mine, other, weight, most), kind + KINDS))
        for freq, token, _, kind in self.outputs.ranking()[:most]:
            if token not in prompt:
                merged.append((weight * freq, token, outputs[token], kind))
        merged.sort(key=_score, reverse=True)
        return merged


def best_first(source: Source, budget: int, depth: int) -> Picked:
    """The `budget` highest-scoring nodes at most `depth` deep, in descending score; among equals the branch begun last goes on."""
    picked = Picked()
    siblings = source.ranking()
    if budget < 1 or depth < 1 or not siblings:
        return picked
    tokens, parents, kinds = picked.token, picked.parent, picked.kind
    heap: list[tuple[float, int, Many[Candidate], int, int, int, float]] = []
    at, parent, level = 0, -1, 1
    scale = 1.0  # of the siblings' scores: below a node of one source alone, frequencies count as much as its own did
    tie = me = 0
    while True:
        score, token, child, kind = siblings[at]
        tokens.append(token)
        parents.append(parent)
        kinds.append(kind)
        if me + 1 == budget:
            break
        at += 1
        if at < len(siblings):  # a sibling enters the race when the one before it has been picked
            tie -= 1
            heappush(heap, (-siblings[at][0] * scale, tie, siblings, at, parent, level, scale))
        if level < depth:
            below = child.ranking()
            if below:
                scale = score * scale / child.freq if isinstance(child, Node) else 1.0
                if not heap or below[0][0] * scale >= -heap[0][0]:  # the common case, a chain, needs no heap
                    siblings, at, parent, level = below, 0, me, level + 1
                    me += 1
                    continue
                tie -= 1
                heappush(heap, (-below[0][0] * scale, tie, below, 0, me, level + 1, scale))
        if not heap:
            break
        me += 1
        _, _, siblings, at, parent, level, scale = heappop(heap)
    return picked


def best_branch(source: Source, depth: int) -> Picked:
    """The best child of the best child, and so on."""
    picked = Picked()
    here: Many[Candidate] = source.ranking()
    while here and len(picked) < depth:
        _, token, child, kind = here[0]
        picked.add(token, len(picked) - 1, kind)
        here = child.ranking()
    return picked


def mixed(prompt: Node, outputs: Node, weight: float, budget: int, depth: int, reserve: tuple[int, int]) -> Picked:
    """The best nodes of both sources. Where there are more than `budget`, some are reserved for the best of one source alone.

    Args:
        weight: of outputs in the common score.
        reserve: nodes kept for prompt and outputs.
    """
    ranked = best_first(Both(prompt, outputs, weight, budget), budget + 1, depth)
    if len(ranked) <= budget:
        return ranked
    place = {(parent, token): node for node, (parent, token) in enumerate(zip(ranked.parent, ranked.token, strict=True))}
    wanted: set[int] = set()
    for source, count in zip((prompt, outputs), reserve, strict=True):
        alone = best_first(source, count, depth)
        nodes: list[int] = []
        for token, parent, kind in zip(alone.token, alone.parent, alone.kind, strict=True):
            above = nodes[parent] if parent >= 0 else -1
            known = place.get((above, token))
            if known is None:
                known = place[above, token] = ranked.add(token, above, kind)
            nodes.append(known)
        wanted.update(nodes)
    for node in range(len(ranked)):  # best first; a node's parent has a higher score, or was reserved with it
        if len(wanted) >= budget:
            break
        wanted.add(node)
    return ranked.kept([node in wanted for node in range(len(ranked))])


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

"""From matched text to a draft: the best nodes of a trie, of two tries together, as a tree, as branches side by side, or one branch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from heapq import heappop, heappush

from paceline.core.tree import TokenTree
from paceline.drafting.lookahead.trie import KINDS, LOOKED, SURE, Forest, kind_of
from paceline.kernels.foresting import RECORD, chooser

PROMPT, OUTPUTS, BOTH = 0, 1, 2
SLOWLY = LOOKED // 8  # places looked at without the kernel
Source = tuple["array[int]", "array[float]"]  # text, and the places in it that stand behind one token


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
        return TokenTree((pending, *self.token), (-1, *[parent + 1 for parent in self.parent]))


class Selection:
    """Chooses drafts, in a kernel where there is one. For one thread at a time.

    Args:
        weight: of outputs beside the prompt: a node that both know scores `(1 - weight) * prompt + weight * outputs`.
        reserve_input, reserve_output: share of an overfull draft kept for the best of the prompt alone, and of outputs alone.
        single: choose the best child of the best child, and so on, and nothing else; of the prompt if it has any.
    """

    def __init__(self, weight: float = 0.0, reserve_input: float = 0.0, reserve_output: float = 0.0, single: bool = False) -> None:
        self.weight, self.reserve, self.single = weight, (reserve_input, reserve_output), single
        self.kernel = chooser(LOOKED, weight, single)
        self.looked = LOOKED if self.kernel is not None else SLOWLY

    def __call__(self, query: Many[int], prompt: Forest | None, outputs: Forest | None, budget: int, depth: int) -> Picked:
        """The best nodes, in pre-order, of what follows `query` in either forest: best scores first, among equals what was begun last.

        Args:
            budget, depth: most nodes, and how deep.
        """
        root = query[0]
        mine = None if prompt is None else prompt.trees.get(root)
        others = None if outputs is None else outputs.trees.get(root)
        if (mine is None and others is None) or budget < 1 or depth < 1:
            return Picked()
        first = None if prompt is None or mine is None else (prompt.text, mine)
        second = None if outputs is None or others is None else (outputs.text, others)
        reserve = int(self.reserve[PROMPT] * budget), int(self.reserve[OUTPUTS] * budget)
        if self.kernel is not None:
            return Picked(*self.kernel(first, second, query[1:], budget, depth, reserve))
        return choose(first, second, query[1:], budget, depth, reserve, self.weight, self.single, self.looked)


class Node:
    """A node of a trie while a draft is chosen: the paths that pass through it, its count and the age of its oldest path by source."""

    __slots__ = ("below", "count", "depth", "keep", "oldest", "parent", "paths", "rank", "token")

    def __init__(self, token: int, parent: Node | None, depth: int) -> None:
        self.token, self.parent, self.depth = token, parent, depth
        self.paths: list[tuple[int, Many[int], int, int, float]] = []  # age, text, where what follows the query begins and ends, weight
        self.count, self.oldest = [0.0, 0.0], [-1, -1]
        self.below: dict[int, Node] | None = None
        self.rank, self.keep = -1, False

    def children(self, prompts: int) -> Many[Node]:
        """What comes next. The `prompts` youngest paths are those of the prompt."""
        if self.below is None:
            self.below = {}
            for path in self.paths:
                age, text, at, stop, weight = path
                if at + self.depth < stop:
                    token = text[at + self.depth]
                    child = self.below.get(token)
                    if child is None:
                        child = self.below[token] = Node(token, self, self.depth + 1)
                    child.paths.append(path)
                    child.count[age >= prompts] += weight
                    child.oldest[age >= prompts] = age
        return list(self.below.values())

    @property
    def kind(self) -> int:
        """Class of evidence, the prompt's if it has any."""
        assert self.parent is not None
        source = PROMPT if self.oldest[PROMPT] >= 0 else OUTPUTS
        known = KINDS if min(self.oldest) >= 0 else 0
        return kind_of(self.count[source], self.parent.count[source]) + known


def choose(
    prompt: Source | None,
    outputs: Source | None,
    query: Many[int],
    budget: int,
    depth: int,
    reserve: tuple[int, int],
    weight: float,
    single: bool,
    looked: int,
) -> Picked:
    """What the kernel does, in plain Python.

    Where there are more than `budget` nodes of two sources, some are reserved for the best of one source alone.
    """
    root = Node(-1, None, 0)
    prompts = _gather(root, prompt, PROMPT, query, looked)
    if not (single and prompts):
        _gather(root, outputs, OUTPUTS, query, looked)
    mixed = 0 < prompts < len(root.paths)
    share = (1 - weight, weight) if mixed else (1.0, 1.0)
    picked: list[Node] = []

    def enter(node: Node, which: int) -> list[tuple[float, int, Node]]:
        """Children that take part in a race, the worst first."""
        found = []
        for child in node.children(prompts):
            source = which if which != BOTH else PROMPT if child.oldest[PROMPT] >= 0 else OUTPUTS
            if child.oldest[source] >= 0:
                score = child.count[which] if which != BOTH else share[0] * child.count[0] + share[1] * child.count[1]
                found.append((-score, child.oldest[source], child))
        return sorted(found, reverse=True)

    def race(which: int, left: int) -> None:
        """Pick up to `left` nodes, the best first; scores never grow on the way down."""
        heap: list[tuple[float, int, list[tuple[float, int, Node]]]] = []
        siblings, tick = enter(root, which), 0
        while siblings and left > 0:
            left -= 1
            node = siblings.pop()[2]
            if node.rank < 0:
                node.rank = len(picked)
                picked.append(node)
            node.keep |= which != BOTH
            if siblings and not single:  # a sibling enters the race when the one before it was picked
                tick -= 1
                heappush(heap, (siblings[-1][0], tick, siblings))
            siblings = enter(node, which) if node.depth < depth else []
            if heap and (not siblings or siblings[-1][0] > heap[0][0]):  # else what was begun goes on
                if siblings:
                    tick -= 1
                    heappush(heap, (siblings[-1][0], tick, siblings))
                siblings = heappop(heap)[2]

    race(BOTH, budget + mixed)
    best = list(picked)
    left = budget
    if len(best) > budget:
        for source in (PROMPT, OUTPUTS):
            race(source, reserve[source])
        left -= sum(node.keep for node in picked)
    for node in best:
        if not node.keep and left > 0:
            left -= 1
            node.keep = True
    place = {id(root): -1}
    draft = Picked()
    for node in picked:
        if node.keep:
            assert node.parent is not None
            place[id(node)] = draft.add(node.token, place[id(node.parent)], node.kind)
    return draft.in_preorder()


def _gather(root: Node, source: Source | None, which: int, query: Many[int], looked: int) -> int:
    """Let the newest places of a source that go on with `query` be paths of the root; returns how many it has then."""
    if source is not None:
        text, tree = source
        wanted, length = array("i", query), len(query)
        numbers = iter(tree[-RECORD * looked :][::-1])
        for weight, end, begin in zip(numbers, numbers, numbers, strict=True):
            at, stop = int(begin) + length, int(end)
            if at <= stop and (not length or text[at - length : at] == wanted):
                root.count[which] += weight
                if at < stop:
                    root.paths.append((len(root.paths), text, at, stop, weight))
    return len(root.paths)


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


def repeated(tokens: Many[int], since: int, length: int, eos: frozenset[int]) -> Picked:
    """What followed the last two tokens in text behind `since`, too young for a forest, taken to repeat with that period."""
    end = len(tokens) - 1
    for at in range(end - 1, since, -1):
        if tokens[at] == tokens[end] and tokens[at - 1] == tokens[end - 1]:
            copied = [tokens[at + 1 + step % (end - at)] for step in range(length)]
            stop = next((step for step, token in enumerate(copied) if token in eos), length)
            return Picked(copied[:stop], list(range(-1, stop - 1)), [SURE] * stop)
    return Picked()

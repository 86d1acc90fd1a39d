"""How much of a draft to send: from the measured cost of rows and from how often candidates of each kind were right."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import accumulate

from paceline.drafting.lookahead.select import Picked
from paceline.drafting.lookahead.trie import KINDS

MEMORY = 256  # candidates of a kind that an estimate remembers
ABOUT = 1.1  # rows that cost up to this many times one row cost "about the same"
NEGLIGIBLE = 0.005  # a chance that pays for no row
CLEARLY = 1.02  # a larger draft must be better by this much: estimates are noisy


def critical_length(cost: Callable[[int], float], roots: int, most: int) -> int:
    """Rows that one forward takes in about the time of the roots alone: the critical decoding length of this device.

    Args:
        cost: seconds of a forward with n rows.
        roots: sequences that decode.
        most: rows, roots included.
    """
    bound = ABOUT * cost(roots)
    rows = roots
    while rows < most and cost(rows + 1) <= bound:
        rows += 1
    return rows


class Record:
    """How often candidates were right, given that the path to them was, per length of the matching query and kind of evidence.

    A candidate that was found but not sent teaches as much as one that was: the target's token is known either way. So a method that
    stopped drafting notices when drafting pays again.
    """

    def __init__(self, queries: int) -> None:
        self._rates = [0.2 + 0.2 * (kind % KINDS // 2) for _ in range(queries + 1) for kind in range(2 * KINDS)]
        self._seen = [2.0] * len(self._rates)  # the first guess weighs as much as two observations

    def reaches(self, picked: Picked, query: int) -> list[float]:
        """For every node the estimated probability that the target gets there. Never larger than its parent's."""
        first = 2 * KINDS * query
        rates = self._rates
        found: list[float] = []
        for parent, kind in zip(picked.parent, picked.kind, strict=True):
            found.append(rates[first + kind] * (found[parent] if parent >= 0 else 1.0))
        return found

    def observe(self, picked: Picked, query: int, tokens: Many[int]) -> None:
        """Compare candidates, sent or not, with the tokens that became output."""
        first = 2 * KINDS * query
        below: dict[int, list[int]] = {}
        for node, parent in enumerate(picked.parent):
            below.setdefault(parent, []).append(node)
        here = -1
        for token in tokens:
            right = None
            for node in below.get(here, ()):
                hit = picked.token[node] == token
                self._learn(first + picked.kind[node], hit)
                if hit:
                    right = node
            if right is None:
                break
            here = right

    def _learn(self, place: int, hit: bool) -> None:
        seen = min(self._seen[place] + 1, MEMORY)
        self._seen[place] = seen
        self._rates[place] += (hit - self._rates[place]) / seen


def worthwhile(reaches: Many[Many[float]], roots: int, cost: Callable[[int], float]) -> list[list[bool]]:
    """Which nodes are worth their rows: the choice with the most expected tokens per second over a whole batch.

    The likeliest m nodes of all trees together always form trees, so only m has to be found.

    Args:
        reaches: per sequence, per node, never larger than the parent's; parents first.
        roots: sequences that decode, drafted for or not.
        cost: seconds of a forward with n rows.

    Returns:
        Per sequence, per node, whether to send it.
    """
    flat = [chance for found in reaches for chance in found]
    order = sorted(range(len(flat)), key=flat.__getitem__, reverse=True)  # stable: among equals, parents first
    gain = float(roots)
    best, most = gain / cost(roots), 0
    for sent, place in enumerate(order, start=1):
        chance = flat[place]
        if chance <= NEGLIGIBLE:
            break
        gain += chance
        rate = gain / cost(roots + sent)
        if rate > best * CLEARLY:
            best, most = rate, sent
    marks = [False] * len(flat)
    for place in order[:most]:
        marks[place] = True
    ends = list(accumulate(map(len, reaches)))
    return [marks[end - len(found) : end] for found, end in zip(reaches, ends, strict=True)]

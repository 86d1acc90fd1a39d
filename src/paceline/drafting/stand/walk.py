"""A STAND tree on its way: where its sequence stood, which nodes may get children, and the random numbers they are drawn with."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from math import log

from paceline.core.request import Sequence
from paceline.core.rng import Purpose, key, uniforms
from paceline.core.tree import Distribution, TokenTree
from paceline.drafting.growth import Growth, draw_counters
from paceline.drafting.stand.scope import Space
from paceline.drafting.stand.table import Context, Entry
from paceline.drafting.stand.template import Place, RankPath

NO_DRAW = -1  # the root was not drawn


@dataclass(slots=True)
class Walk:
    """A tree while it is drawn, and where its sequence stood.

    Args:
        sequence: drafted for.
        space: of the table.
        tail: last tokens before the draft, as many as the longest context.
        sampled: whether children are drawn (else the likeliest are chosen).
        root: of the template, if it has any nodes.
        most, depth: largest and deepest tree.
        ends: tokens below which nothing is drafted.
        step: tokens there were; keys the random numbers.
        paths: template place of each node, in the order they were drawn, later in that of the tree; where they are recorded.
        kinds: class of each node's draw, in the same order.
    """

    sequence: Sequence
    space: Space
    tail: Context
    sampled: bool
    root: Place | None
    most: int
    depth: int
    ends: frozenset[int]
    step: int
    paths: list[RankPath] = field(default_factory=lambda: [()])
    kinds: list[int] = field(default_factory=lambda: [NO_DRAW])
    _starts: dict[int, int] = field(default_factory=dict)  # of random numbers, by position
    growth: Growth = field(init=False)
    tree: TokenTree = field(init=False)

    def __post_init__(self) -> None:
        self.growth = Growth([self.tail[-1]], [-1], [0], [None])

    def numbers(self, node: int, count: int) -> list[float]:
        """Random numbers for the candidates behind a node. None is used twice: not by other nodes, nor by other steps or sequences."""
        position = self.step + self.growth.depth[node]
        start = self._starts.get(position)
        if start is None:
            start = self._starts[position] = key(self.sequence.seed, position, Purpose.DRAFT)
        return uniforms(start, draw_counters(self.step, node, count))


@dataclass(slots=True)
class Spot:
    """A node that may get children: where it stands in tree and template, the last tokens before its children, and its chance to be
    reached."""

    walk: Walk
    node: int
    place: Place
    context: Context
    reach: float = 1.0


@dataclass(slots=True)
class Draws:
    """What the children of one node would be.

    Args:
        tokens: in the order they are drawn.
        shares: probability of each in the law they are drawn from.
        law: what they are drawn from; nothing where they are chosen, as the only token of an entry is: it is judged by the same chance.
    """

    tokens: Many[int]
    shares: Many[float]
    law: Distribution | None = None


def draw(spot: Spot, entry: Entry) -> Draws:
    """All candidates of an entry, in the order they are drawn without replacement; the likeliest first where nothing is drawn.

    Gumbel top-k as a race: the log of an exponential number is Gumbel noise, so whoever has the smallest number divided by its probability
    has the largest noisy log-probability.
    """
    size = len(entry.ids)
    if size == 1:
        return Draws(entry.ids, (1.0,))
    shares = entry.shares  # what is drawn from: only here are stored probabilities renormalised
    walk = spot.walk
    if not walk.sampled:
        return Draws(entry.ids, shares)
    numbers = walk.numbers(spot.node, size)
    times = [-log(number + 2.0**-54) / share for number, share in zip(numbers, shares, strict=True)]  # the number is never zero
    order = sorted(range(size), key=times.__getitem__)
    return Draws([entry.ids[at] for at in order], [shares[at] for at in order], Distribution(shares, entry.ids))

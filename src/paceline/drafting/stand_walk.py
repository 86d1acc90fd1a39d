"""A STAND tree on its way: where its sequence stood, which nodes may get children, and the random numbers they are drawn with."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from paceline.core.request import Sequence
from paceline.core.rng import Purpose
from paceline.core.tree import Distribution, TokenTree
from paceline.core.uniforms import stream, uniform_block
from paceline.drafting.growth import Growth, draw_counters
from paceline.drafting.stand_scope import Space
from paceline.drafting.stand_table import Context, Entry, NgramTable
from paceline.drafting.stand_template import RankPath

NO_DRAW = -1  # the root was not drawn
NO_NOISE: npt.NDArray[np.float64] = np.zeros((0, 0))


@dataclass(slots=True)
class Walk:
    """A tree while it is drawn, and where its sequence stood.

    Args:
        sequence: drafted for.
        space: of the table.
        tail: last tokens before the draft, as many as the longest context.
        sampled: whether children are drawn (else the likeliest are chosen).
        widths: most children of each template node.
        most, depth: largest and deepest tree.
        ends: tokens below which nothing is drafted.
        step: tokens there were; keys the random numbers.
        paths: template place of each node, in the order they were drawn, later in that of the tree.
        kinds: class of each node's draw, in the same order.
    """

    sequence: Sequence
    space: Space
    tail: Context
    sampled: bool
    widths: dict[RankPath, int]
    most: int
    depth: int
    ends: frozenset[int]
    step: int
    paths: list[RankPath] = field(default_factory=lambda: [()])
    kinds: list[int] = field(default_factory=lambda: [NO_DRAW])
    growth: Growth = field(init=False)
    tree: TokenTree = field(init=False)

    def __post_init__(self) -> None:
        self.growth = Growth([self.tail[-1]], [-1], [0], [None])


@dataclass(frozen=True, slots=True)
class Spot:
    """A node that may get children: where it stands in tree and template, the tokens before its children, and its chance to be reached."""

    walk: Walk
    node: int
    path: RankPath
    context: Context
    reach: float = 1.0


@dataclass(frozen=True, slots=True)
class Draws:
    """What the children of one node would be.

    Args:
        tokens: in the order they are drawn.
        shares: probability of each in the law they are drawn from.
        peak: the largest of these.
        law: what they are drawn from; nothing where there is one token only: it counts as chosen, which is judged by the same chance.
    """

    tokens: list[int]
    shares: list[float]
    peak: float
    law: Distribution | None


def draw(table: NgramTable, entries: Many[Entry], noise: npt.NDArray[np.float64]) -> list[Draws]:
    """All candidates of some entries in the order of Gumbel top-k: drawn without replacement. An entry of one token needs no draw.

    Args:
        table: that the entries are of.
        noise: (entries of more than one token, candidates) Gumbel numbers.
    """
    several = [entry for entry in entries if len(entry.ids) > 1]
    if several:
        ids, probs = table.gather(several)
        q = probs / probs.sum(-1, keepdims=True)  # what is drawn from: only here are stored probabilities renormalised
        orders = np.argsort(-(np.log(np.where(q > 0, q, 1.0)) + noise), axis=-1, kind="stable").tolist()
        support = ids.astype(np.int64)
    drawn: list[Draws] = []
    row = 0
    for entry in entries:
        size = len(entry.ids)
        if size == 1:
            drawn.append(Draws([entry.ids[0]], [1.0], 1.0, None))
            continue
        order, shares = [place for place in orders[row] if place < size], q[row].tolist()
        law = Distribution(torch.from_numpy(q[row, :size]), torch.from_numpy(support[row, :size]))
        drawn.append(Draws([entry.ids[place] for place in order], [shares[place] for place in order], max(shares), law))
        row += 1
    return drawn


def gumbel(spots: Many[Spot], candidates: int) -> npt.NDArray[np.float64]:
    """Gumbel numbers (spots, candidates); zeros where the likeliest are chosen. No number is used twice."""
    noise = np.zeros((len(spots), candidates))
    drawn = [at for at, spot in enumerate(spots) if spot.walk.sampled]
    streams: dict[int, int] = {}  # by sequence: nodes of one level decide one position
    counters = []
    for at in drawn:
        walk, node = spots[at].walk, spots[at].node
        if walk.sequence.uid not in streams:
            streams[walk.sequence.uid] = stream(walk.sequence.seed, walk.step + walk.growth.depth[node], Purpose.DRAFT)
        counters.append(draw_counters(walk.step, node, candidates).start)
    if drawn:
        numbers = uniform_block([streams[spots[at].walk.sequence.uid] for at in drawn], counters, candidates)
        noise[drawn] = -np.log(-np.log(numbers + 2.0**-54))  # the number is never zero
    return noise

"""STAND: drafts sampled from the target's own probabilities at recently seen n-grams; no draft model, no training.

Accelerated Test-Time Scaling with Model-Free Speculative Sampling, arXiv 2506.04708. Every judged node teaches the table the law that
stood behind its context. Children of a node are drawn from that memory without replacement by Gumbel top-k, in a tree of a
fixed shape that was chosen by measured acceptance, and judged against the law they were drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from paceline.core.batch import TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.rng import Purpose
from paceline.core.sampling import Sampling
from paceline.core.transform import law_of, target_distribution, top
from paceline.core.tree import ROOT, Distribution, TokenTree
from paceline.core.uniforms import stream, uniform_block
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.growth import Growth, draw_counters
from paceline.drafting.stand_config import StandConfig
from paceline.drafting.stand_scope import Space, Spaces
from paceline.drafting.stand_table import Context, NgramTable
from paceline.drafting.stand_template import RankPath, Template, default_template

NODES_BY_BATCH = ((1, 80), (4, 32))  # sequences drafted for, nodes for each: rows of a forward are shared by all
NODES_BEYOND = 16


@dataclass(slots=True)
class Walk:
    """A tree while it is drawn, and where its sequence stood.

    Args:
        sequence: drafted for.
        space: of the table.
        tail: last tokens before the draft, as many as the longest context.
        sampled: whether children are drawn (else the likeliest are chosen).
        widths: children that each template node wants.
        ends: tokens below which nothing is drafted.
        step: tokens there were; keys the random numbers.
    """

    sequence: Sequence
    space: Space
    tail: Context
    sampled: bool
    widths: dict[RankPath, int]
    ends: frozenset[int]
    step: int
    growth: Growth = field(init=False)
    tree: TokenTree = field(init=False)

    def __post_init__(self) -> None:
        self.growth = Growth([self.tail[-1]], [-1], [0], [None])


@dataclass(frozen=True, slots=True)
class Spot:
    """A node that may get children: where it stands in tree and template, and the tokens before its children."""

    walk: Walk
    node: int
    path: RankPath
    context: Context


class Stand:
    """Drafts from a table of n-grams with the target's probabilities.

    Args:
        config: options.
        eos: ids below which nothing is drafted.
        template: tree shape; `None` takes the built-in one.
    """

    Config = StandConfig
    taps: TapRequest = TapRequest(logits=True)

    def __init__(self, config: StandConfig, eos: frozenset[int] = frozenset(), template: Template | None = None) -> None:
        self.config, self.eos, self.template = config, eos, template
        self.table = NgramTable(config.candidates, config.max_entries)
        self.traces: list[RankPath] = []
        self._lengths = config.lengths
        self._spaces = Spaces(config.scope, config.idle, self.table.drop)
        self._walks: dict[int, Walk] = {}
        self._widths: dict[tuple[int, int], dict[RankPath, int]] = {}

    @classmethod
    def build(cls, config: StandConfig, context: DraftContext) -> Stand:
        """A drafter for this context.

        Raises:
            UsageError: if the template cannot be read.
        """
        return cls(config, context.eos, Template.load(Path(config.template)) if config.template else None)

    @property
    def evictions(self) -> int:
        """Contexts forgotten for lack of room."""
        return self.table.evictions

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Draw all trees together, one gather from the table per level."""
        nodes = self.config.nodes or next((size for most, size in NODES_BY_BATCH if len(sequences) <= most), NODES_BEYOND)
        walks = [self._start(sequence, limit, nodes) for sequence, limit in zip(sequences, limits, strict=True)]
        live = [Spot(walk, ROOT, (), walk.tail) for walk in walks if () in walk.widths]
        while live:
            live = self._deepen(live)
        for walk in walks:
            walk.tree, _ = walk.growth.tree(walk.sampled)
        return [walk.tree for walk in walks]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Remember the laws at the root and along the accepted path, in row order.

        Raises:
            ValueError: without logits for the trees.
        """
        if taps.logits is None or len(taps.logits) != sum(map(len, trees)):
            raise ValueError("stand learns from the logits of the judged trees; the loop must hand them over as its taps ask")
        seen: list[tuple[Walk, Context, int]] = []
        start = 0
        for sequence, tree, verdict in zip(sequences, trees, verdicts, strict=True):
            walk = self._walks.pop(sequence.uid, None)
            if walk is not None:
                nodes = range(len(tree)) if self.config.observe_rejected else (ROOT, *verdict.accepted)
                for node in nodes:
                    context = (*walk.tail, *(tree.token[step] for step in tree.path(node)))
                    seen.append((walk, context, start + node))
                if self.config.record and tree is walk.tree:
                    self.traces.append(_ranks(tree, verdict.accepted))
            start += len(tree)
        self._learn(seen, taps.logits)

    def release(self, sequence: Sequence) -> None:
        self._walks.pop(sequence.uid, None)
        self._spaces.leave(sequence)

    def memory_bytes(self) -> int:
        """Bytes of the table."""
        return self.table.bytes()

    def _start(self, sequence: Sequence, limit: DraftLimits, nodes: int) -> Walk:
        space = self._spaces.enter(sequence)
        self.table.use(space)
        request = sequence.request
        sampled = space.fresh(sequence) and self.config.stochastic and not request.sampling.greedy
        size, depth = min(nodes, limit.nodes), min(self.config.depth, limit.depth)
        if (size, depth) not in self._widths:
            whole = self.template or default_template(nodes, self.config.depth)
            self._widths[size, depth] = whole.cut(size, depth).widths()
        tail = tuple(sequence.tokens[-self._lengths[0] :])
        ends = request.stop_ids | (frozenset() if request.ignore_eos else self.eos)
        walk = Walk(sequence, space, tail, sampled, self._widths[size, depth], ends, len(sequence.tokens))
        self._walks[sequence.uid] = walk
        return walk

    def _row(self, spot: Spot) -> int | None:
        """Entry of the longest known context."""
        for length in self._lengths:
            if length <= len(spot.context):
                row = self.table.find(spot.walk.space, spot.context[-length:])
                if row is not None:
                    return row
        return None

    def _deepen(self, live: Many[Spot]) -> list[Spot]:
        """Give every node its children; returns those that may get some themselves."""
        known = [(spot, row) for spot in live if (row := self._row(spot)) is not None]
        if not known:
            return []
        spots = [spot for spot, _ in known]
        ids, probs = self.table.gather([row for _, row in known])
        q = probs / probs.sum(-1, keepdims=True)  # what is drawn from: only here are stored probabilities renormalised
        order = np.argsort(-(np.log(np.where(q > 0, q, 1.0)) + self._noise(spots)), axis=-1, kind="stable").tolist()
        counts = (q > 0).sum(-1).tolist()
        tokens, support = ids.tolist(), ids.astype(np.int64)
        deeper: list[Spot] = []
        for at, spot in enumerate(spots):
            walk, growth = spot.walk, spot.walk.growth
            if walk.sampled:
                size = counts[at]
                growth.q[spot.node] = Distribution(torch.from_numpy(q[at, :size]), torch.from_numpy(support[at, :size]))
            drawn = [place for place in order[at] if place < counts[at]][: walk.widths[spot.path]]
            for rank, place in enumerate(drawn):  # in the order of the draws: verification depends on it
                token, path = tokens[at][place], (*spot.path, rank)
                child = growth.add(token, spot.node)
                if path in walk.widths and token not in walk.ends:
                    deeper.append(Spot(walk, child, path, (*spot.context, token)))
        return deeper

    def _noise(self, spots: Many[Spot]) -> np.ndarray:
        """Gumbel numbers for every candidate of every node; none where the likeliest are chosen. No number is used twice."""
        noise = np.zeros((len(spots), self.config.candidates))
        drawn = [at for at, spot in enumerate(spots) if spot.walk.sampled]
        streams: dict[int, int] = {}  # by sequence: nodes of one level decide one position
        counters = []
        for at in drawn:
            walk, node = spots[at].walk, spots[at].node
            if walk.sequence.uid not in streams:
                streams[walk.sequence.uid] = stream(walk.sequence.seed, walk.step + walk.growth.depth[node], Purpose.DRAFT)
            counters.append(draw_counters(walk.step, node, self.config.candidates).start)
        if drawn:
            numbers = uniform_block([streams[spots[at].walk.sequence.uid] for at in drawn], counters, self.config.candidates)
            noise[drawn] = -np.log(-np.log(numbers + 2.0**-54))  # the number is never zero
        return noise

    def _learn(self, seen: Many[tuple[Walk, Context, int]], logits: torch.Tensor) -> None:
        """Average the laws of some rows into the table, in the order given."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for at, (walk, _, _) in enumerate(seen):
            groups.setdefault(law_of(walk.sequence.request.sampling), []).append(at)
        best: dict[int, tuple[list[int], list[float]]] = {}
        for members in groups.values():
            sampling = self._remembered(seen[members[0]][0].sequence.request.sampling)
            rows = torch.tensor([seen[at][2] for at in members], device=logits.device)
            laws = target_distribution(logits[rows], sampling).float()
            probs, ids = top(laws, min(self.config.candidates, laws.shape[-1]))
            best.update(zip(members, zip(ids.tolist(), probs.tolist(), strict=True), strict=True))
        for at, (walk, context, _) in enumerate(seen):
            for length in self._lengths:
                if length <= len(context):
                    self.table.observe(walk.space, context[-length:], *best[at])

    def _remembered(self, sampling: Sampling) -> Sampling:
        """The settings whose law is remembered: the request's own, or a spread-out law where the target is greedy."""
        if not sampling.greedy or self.config.greedy_temperature == 0:
            return sampling
        return replace(sampling, temperature=self.config.greedy_temperature, top_k=0, top_p=1.0, min_p=0.0)


def _ranks(tree: TokenTree, accepted: Many[int]) -> RankPath:
    """Which child of its parent each accepted node was."""
    children = tree.children()
    return tuple(children[tree.parent[node]].index(node) for node in accepted)

"""STAND: drafts sampled from the target's own probabilities at recently seen n-grams; no draft model, no training.

Accelerated Test-Time Scaling with Model-Free Speculative Sampling, arXiv 2506.04708. Every judged node teaches the table the law that
stood behind its context. Children of a node are drawn from that memory without replacement by Gumbel top-k, in a tree of a
fixed shape that was chosen by measured acceptance, and judged against the law they were drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from time import perf_counter

import torch

from paceline.core.batch import TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.prompt_lookup import PromptLookup, PromptLookupConfig
from paceline.drafting.stand.budget import Patience, Prospects
from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.file import kept, read_tables, restore, write_tables
from paceline.drafting.stand.learning import Lesson, along, judged, learn
from paceline.drafting.stand.scope import Spaces
from paceline.drafting.stand.table import NgramTable
from paceline.drafting.stand.template import Place, RankPath, Template, default_template, named_template
from paceline.drafting.stand.walk import NO_DRAW, Spot, Walk, draw
from paceline.planning.cost import ForwardCost, StepWatch

COPIES = PromptLookupConfig(length=12)


class Stand:
    """Drafts from a table of n-grams with the target's probabilities.

    Args:
        config: options.
        eos: ids below which nothing is drafted.
        template: tree shape; `None` computes one from assumed acceptance.
        cost: seconds of a target forward with n rows, for `budget=measured`; without it, all of the tree is sent.
        vocabulary: size of the target's vocabulary; written to files.
    """

    Config = StandConfig

    def __init__(
        self,
        config: StandConfig,
        eos: frozenset[int] = frozenset(),
        template: Template | None = None,
        cost: ForwardCost | None = None,
        vocabulary: int = 0,
    ) -> None:
        self.config, self.eos, self.template, self.cost, self.vocabulary = config, eos, template, cost, vocabulary
        self.taps = TapRequest(logits=True, prompt_logits=config.observe_prompt, likeliest=0 if config.said else config.candidates)
        self.table = NgramTable(config.candidates, config.max_entries)
        self._watch = None if cost is None else StepWatch(cost)
        self._patience: dict[int, Patience] = {}
        self.traces: list[RankPath] = []
        self._lengths = config.lengths
        self._spaces = Spaces(config.scope, config.idle, self.table.drop)
        self._walks: dict[int, Walk] = {}
        self._copies = PromptLookup(COPIES) if config.fallback == "copy" else None
        self._prospects = None if cost is None else Prospects(cost, config.lengths[0], COPIES.max_ngram)
        self._roots: dict[tuple[int, int], Place | None] = {}  # of the template, by nodes and depth

    @classmethod
    def build(cls, config: StandConfig, context: DraftContext) -> Stand:
        """A drafter for this context.

        Raises:
            UsageError: if the template or the table cannot be read.
        """
        template = named_template(config.template)
        cost = ForwardCost(context.probe) if config.budget == "measured" else None
        if cost is not None:
            cost(1)  # probe while loading, not inside the first request
        drafter = cls(config, context.eos, template, cost, context.vocabulary)
        if config.table:
            drafter.load(Path(config.table))
        return drafter

    @property
    def evictions(self) -> int:
        """Contexts forgotten for lack of room."""
        return self.table.evictions

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Draw all trees together, level by level, so that rows are weighed against one another."""
        nodes = self.config.size(len(sequences))
        walks = [self._start(sequence, limit, nodes) for sequence, limit in zip(sequences, limits, strict=True)]
        begun = perf_counter()
        live = [Spot(walk, ROOT, walk.root, walk.tail) for walk in walks if walk.root is not None]
        rows = len(walks)
        if self._copies is not None:
            copied = {id(spot) for spot in live if self._copy(spot, rows)}
            live = [spot for spot in live if id(spot) not in copied]
            rows += sum(len(walk.growth.token) - 1 for walk in walks)
        while live:
            live, drawn = self._deepen(live, rows)
            rows += drawn
        for walk in walks:
            walk.tree, order = walk.growth.tree(walk.sampled)
            if not walk.tree.is_chain:  # else it is in order
                walk.kinds = [walk.kinds[node] for node in order]
                walk.paths = [walk.paths[node] for node in order] if self.config.record else []
        if self._prospects is not None:
            self._prospects.drew(rows - len(walks), perf_counter() - begun)
        if self._watch is not None:
            self._watch.begin(sequences, [walk.tree for walk in walks])
        return [walk.tree for walk in walks]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Remember the laws at the root and along the accepted path, in row order.

        Raises:
            ValueError: without logits for the trees.
        """
        if taps.logits is None or len(taps.logits) != sum(map(len, trees)):
            raise ValueError("stand learns from the logits of the judged trees; the loop must hand them over as its taps ask")
        if self._watch is not None:
            self._watch.end(trees)
        lessons: list[Lesson] = []
        start = 0
        for sequence, tree, verdict in zip(sequences, trees, verdicts, strict=True):
            walk = self._walks.pop(sequence.uid, None)
            if walk is not None:
                patience = self._patience.get(sequence.uid)
                if patience is None or patience.learns(walk.step):
                    lessons.extend(judged(walk, tree, verdict, start, self.config.observe_rejected))
                if tree is walk.tree:
                    self._review(walk, verdict)
            start += len(tree)
        learn(self.table, self.config, lessons, taps.logits, taps.likeliest)
        if self._prospects is not None and trees:
            self._prospects.stepped(sum(map(len, trees)), sum(len(verdict.tokens) for verdict in verdicts))

    def observe_prompt(self, sequence: Sequence, start: int, logits: torch.Tensor) -> None:
        """Remember the laws of a stretch of the prompt.

        Args:
            sequence: whose `tokens[start]` the first row belongs to.
            logits: (rows, vocabulary), processed as those of trees are.
        """
        learn(self.table, self.config, along(self._spaces.enter(sequence), sequence, self._lengths[0], start, len(logits)), logits)

    def release(self, sequence: Sequence) -> None:
        self._patience.pop(sequence.uid, None)
        if self._copies is not None:
            self._copies.release(sequence)
        self._walks.pop(sequence.uid, None)
        self._spaces.leave(sequence)

    def forget(self) -> None:
        """Forget every law, and what draws were worth. Only while nothing runs."""
        if self.cost is not None:
            self._prospects = Prospects(self.cost, self.config.lengths[0], COPIES.max_ngram)
        self.table = NgramTable(self.config.candidates, self.config.max_entries)
        self._spaces = Spaces(self.config.scope, self.config.idle, self.table.drop)

    def save(self, path: Path) -> None:
        """Write the table to a file that the option `table` reads.

        Raises:
            UsageError: if it cannot be written.
        """
        write_tables(path, kept(self._spaces, self.table), self.vocabulary, self.config.candidates, self.config.scope)

    def load(self, path: Path) -> None:
        """Take over the spaces of a file written by `save`; one that both have is the file's.

        Sequences that repeat a seed behind a saved space are judged by plain samples: its laws depend on their random numbers.

        Raises:
            UsageError: if the file cannot be used.
        """
        restore(read_tables(path, self.vocabulary, self.config.candidates, self.config.scope), self._spaces, self.table)

    def memory_bytes(self) -> int:
        """Bytes of the table."""
        return self.table.bytes()

    def _start(self, sequence: Sequence, limit: DraftLimits, nodes: int) -> Walk:
        space = self._spaces.enter(sequence)
        self.table.use(space)
        request = sequence.request
        sampled = space.fresh(sequence) and self.config.stochastic and not request.sampling.greedy
        size, depth = min(nodes, limit.nodes), min(self.config.depth, limit.depth)
        if (size, depth) not in self._roots:
            whole = self.template or default_template(nodes, self.config.depth)
            self._roots[size, depth] = whole.cut(size, depth).root()
        tail = tuple(sequence.tokens[-self._lengths[0] :])
        ends = request.stop_ids | (frozenset() if request.ignore_eos else self.eos)
        walk = Walk(sequence, space, tail, sampled, self._roots[size, depth], size, depth, ends, len(sequence.tokens))
        self._walks[sequence.uid] = walk
        return walk

    def _review(self, walk: Walk, verdict: Verdict) -> None:
        """Learn which draws were accepted, of those that were judged."""
        if self.config.record:
            self.traces.append(walk.paths[verdict.accepted[-1]] if verdict.accepted else ())
        if self._prospects is None:
            return
        parent, chosen = walk.tree.parent, iter((*verdict.accepted, None))
        here, accepted = ROOT, next(chosen)
        for node in range(1, len(parent)):  # in pre-order, siblings stand in the order they were judged
            if parent[node] == here:
                self._prospects.judged(walk.kinds[node], node == accepted)
                if node == accepted:
                    here, accepted = node, next(chosen)
        patience = self._patience.setdefault(walk.sequence.uid, Patience())
        patience.judged(len(walk.tree) > 1, len(verdict.accepted) > 0)

    def _copy(self, spot: Spot, rows: int) -> bool:
        """Draft for a sequence by copying from earlier in it, if that is known to hold more often than the table; whether it did."""
        assert self._copies is not None
        walk, odds = spot.walk, self._prospects
        found = self.table.longest(walk.space, spot.context, self._lengths)
        known = -1.0 if found is None else 1.0 if odds is None else odds.opening(*found)
        if known >= (1.0 if odds is None else odds.copying()):
            return False
        tokens, suffix = self._copies.lookup(walk.sequence, min(COPIES.length, walk.most, walk.depth))
        if not tokens or (odds is not None and known >= odds.rates[odds.copied(suffix, 0)]):
            return False
        least = 0.0 if odds is None else odds.least(rows)
        reach, node, path = 1.0, ROOT, spot.place.path
        for depth, token in enumerate(tokens):
            kind = NO_DRAW if odds is None else odds.copied(suffix, depth)
            if odds is not None:
                reach *= odds.rates[kind]
                if reach < least and not self._due(walk):
                    break
            node, path = walk.growth.add(token, node), (*path, 0)
            if self.config.record:
                walk.paths.append(path)
            walk.kinds.append(kind)
            if token in walk.ends:
                break
        return True

    def _deepen(self, live: Many[Spot], rows: int) -> tuple[list[Spot], int]:
        """Give every node its children.

        Args:
            rows: of the forward so far, these children left out.

        Returns:
            The children that may get some themselves, and how many were drawn.
        """
        odds, table, lengths = self._prospects, self.table, self._lengths
        least = 0.0 if odds is None else odds.least(rows)
        keep = 1 - lengths[0]
        deeper: list[Spot] = []
        count = 0
        for spot in live:
            walk, place = spot.walk, spot.place
            found = table.longest(walk.space, spot.context, lengths)
            if found is None:
                continue
            entry, length = found
            growth, reach, left, drawn = walk.growth, spot.reach, 1.0, None
            for rank in range(min(place.width, len(entry.ids), walk.most + 1 - len(growth.token))):
                kind, chance = NO_DRAW, 1.0
                if odds is not None:  # nothing here may depend on the value of the draw
                    kind = odds.kind(length, rank, left if rank else entry.peak)
                    chance = odds.rates[kind]
                    if reach * chance < least and not self._due(walk):
                        break
                drawn = drawn or draw(spot, entry)
                token = drawn.tokens[rank]
                child = growth.add(token, spot.node)
                if self.config.record:
                    walk.paths.append((*place.path, rank))
                walk.kinds.append(kind)
                count += 1
                below = place.below[rank]
                if below is not None and token not in walk.ends:
                    context = (*spot.context[keep:], token) if keep else (token,)
                    deeper.append(Spot(walk, child, below, context, reach * chance))
                reach *= 1.0 - chance
                left -= drawn.shares[rank]
            if drawn is not None and drawn.law is not None:
                growth.q[spot.node] = drawn.law
        return deeper, count

    def _due(self, walk: Walk) -> bool:
        """Whether a sequence that would send nothing should try all the same."""
        return len(walk.growth.token) == 1 and self._patience.setdefault(walk.sequence.uid, Patience()).due()

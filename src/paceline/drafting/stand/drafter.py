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
from paceline.drafting.stand.budget import Prospects
from paceline.drafting.stand.compiled import CompiledDrawing, CompiledTable
from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.draw import COPIES, Drawing
from paceline.drafting.stand.file import kept, read_tables, restore, write_tables
from paceline.drafting.stand.learning import Lesson, along, judged, learn
from paceline.drafting.stand.scope import Spaces
from paceline.drafting.stand.table import NgramTable, Table
from paceline.drafting.stand.template import Places, RankPath, Template, default_template, named_template, ranks_of
from paceline.drafting.stand.walk import Walk
from paceline.kernels.ngrams import ngrams
from paceline.planning.cost import ForwardCost, StepWatch


def memory(config: StandConfig, compiled: bool = True) -> tuple[Table, Drawing | CompiledDrawing]:
    """A table, and who draws from it.

    Args:
        compiled: whether kernels may do it, if this machine can have them.
    """
    copies = config.fallback == "copy"
    kernel = ngrams(config.lengths, config.candidates, config.max_entries) if compiled else None
    if kernel is None:
        plain = NgramTable(config.lengths, config.candidates, config.max_entries)
        return plain, Drawing(plain, copies)
    table = CompiledTable(kernel, config.lengths)
    return table, CompiledDrawing(table, copies, config.candidates)


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
        self.table, self._draw = memory(config)
        self._watch = None if cost is None else StepWatch(cost)
        self._prospects = None if cost is None else Prospects(cost, config.lengths[0], COPIES.max_ngram)
        self.traces: list[RankPath] = []
        self._spaces = Spaces(config.scope, config.idle, self.table.drop)
        self._walks: dict[int, Walk] = {}
        self._places: dict[tuple[int, int], Places | None] = {}  # of the template, by nodes and depth

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
        walks = [self._stand(sequence, limit, nodes) for sequence, limit in zip(sequences, limits, strict=True)]
        begun = perf_counter()
        rows = self._draw(walks, self._prospects)
        if self._prospects is not None:
            self._prospects.drew(rows - len(walks), perf_counter() - begun)
        trees = []
        for walk in walks:
            assert walk.tree is not None
            trees.append(walk.tree)
            if walk.asked:
                walk.patience.asked()
        if self._watch is not None:
            self._watch.begin(sequences, trees)
        return trees

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
            walk = self._walks.get(sequence.uid)
            if walk is not None and walk.tree is not None:
                walk.read()
                if walk.patience.learns(walk.step):
                    lessons.extend(judged(walk, tree, verdict, start, self.config.observe_rejected))
                if tree is walk.tree:
                    self._review(walk, tree, verdict)
                walk.tree = None
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
        learn(self.table, self.config, [along(self._spaces.enter(sequence), sequence, start, len(logits))], logits)

    def release(self, sequence: Sequence) -> None:
        walk = self._walks.pop(sequence.uid, None)
        if walk is not None:
            self._draw.release(walk)
        self._spaces.leave(sequence)

    def forget(self) -> None:
        """Forget every law, and what draws were worth. Only while nothing runs."""
        if self.cost is not None:
            self._prospects = Prospects(self.cost, self.config.lengths[0], COPIES.max_ngram)
        self.table, self._draw = memory(self.config)
        self._spaces = Spaces(self.config.scope, self.config.idle, self.table.drop)

    def save(self, path: Path) -> None:
        """Write the table to a file that the option `table` reads.

        Raises:
            UsageError: if it cannot be written.
        """
        write_tables(
            path, kept(self._spaces, self.table, self.config.candidates), self.vocabulary, self.config.candidates, self.config.scope
        )

    def load(self, path: Path) -> None:
        """Take over the spaces of a file written by `save`; one that both have is the file's. Contexts of other lengths are left out.

        Sequences that repeat a seed behind a saved space are judged by plain samples: its laws depend on their random numbers.

        Raises:
            UsageError: if the file cannot be used.
        """
        restore(read_tables(path, self.vocabulary, self.config.candidates, self.config.scope), self._spaces, self.table)
        self._walks.clear()  # their spaces may be others now

    def memory_bytes(self) -> int:
        """Bytes of the table and of the text that running sequences are read from."""
        return self.table.bytes() + sum(walk.text.itemsize * len(walk.text) for walk in self._walks.values())

    def _stand(self, sequence: Sequence, limit: DraftLimits, nodes: int) -> Walk:
        """Where a sequence stands, and how much may be drafted for it."""
        walk = self._walks.get(sequence.uid)
        if walk is None:
            request, space = sequence.request, self._spaces.enter(sequence)
            sampled = space.fresh(sequence) and self.config.stochastic and not request.sampling.greedy
            ends = request.stop_ids | (frozenset() if request.ignore_eos else self.eos)
            walk = self._walks[sequence.uid] = Walk(sequence, space, sampled, ends, len(request.source))
        walk.read()
        walk.step, walk.most, walk.depth = len(sequence.tokens), min(nodes, limit.nodes), min(self.config.depth, limit.depth)
        shape = walk.most, walk.depth
        if shape not in self._places:
            whole = self.template or default_template(nodes, self.config.depth)
            self._places[shape] = whole.cut(*shape).places()
        walk.places, walk.due, walk.asked = self._places[shape], walk.patience.due, False
        return walk

    def _review(self, walk: Walk, tree: TokenTree, verdict: Verdict) -> None:
        """Learn which draws were accepted, of those that were judged."""
        if self.config.record:
            self.traces.append(ranks_of(tree, verdict.accepted[-1]) if verdict.accepted else ())
        if self._prospects is None:
            return
        parent, chosen = tree.parent, iter((*verdict.accepted, None))
        here, accepted = ROOT, next(chosen)
        for node in range(1, len(parent)):  # in pre-order, siblings stand in the order they were judged
            if parent[node] == here:
                self._prospects.judged(walk.kinds[node], node == accepted)
                if node == accepted:
                    here, accepted = node, next(chosen)
        walk.patience.judged(len(tree) > 1, len(verdict.accepted) > 0)

"""Deliberately wrong components. Each breaks one rule of exact decoding as it is broken in practice; the audit must notice every one."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.rules import Opening
from paceline.core.batch import ForwardBatch, ForwardResult, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.transform import draw, target_distribution
from paceline.core.tree import ROOT, Distribution, Proposal, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import Drafter, DraftLimits
from paceline.engine.runner import Runner
from paceline.verification.verifier import Verifier


class StalePositions(Runner):
    """Every node of a tree gets the position of its root, as when positions are taken from the committed length alone."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        wanted = set(batch.logit_rows if batch.logit_rows is not None else range(batch.rows))
        positions = list(batch.positions)
        start = 0
        for segment in batch.segments:
            nodes = [row for row in range(start, start + segment.rows) if row in wanted]
            for row in nodes:
                positions[row] = positions[nodes[0]]
            start += segment.rows
        return super().forward(replace(batch, positions=positions))


class LeakingMask(Runner):
    """Tree nodes see the siblings drafted before them, as under a plain causal mask."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        return super().forward(replace(batch, segments=[replace(segment, mask=None, tree=None) for segment in batch.segments]))


class DroppedRow(Runner):
    """The newest committed token of every sequence is missing from memory: its keys and values are zero."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        for segment in batch.segments:
            if segment.memory.length > 1:
                newest = segment.memory.runs(segment.memory.length)[-1][1] - 1
                for pool in (*self.memory.keys, *self.memory.values):
                    pool[newest] = 0
        return super().forward(batch)


class NudgedBit(Runner):
    """One logit of every row is off by its last bit."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        result = super().forward(batch)
        logits = result.logits.clone()
        first = logits[:, 0]
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.dtype.itemsize]
        logits[:, 0] = (first.contiguous().view(bits) ^ 1).view(first.dtype)
        return replace(result, logits=logits)


class WrongPath(Verifier):
    """The right tokens, but the memory of other nodes: of each accepted node's sibling where it has one, else of the node before it."""

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        verdicts = super().judge(sequences, trees, logits)
        return [replace(verdict, accepted=_strayed(tree, verdict.accepted)) for tree, verdict in zip(trees, verdicts, strict=True)]


def _strayed(tree: TokenTree, accepted: tuple[int, ...]) -> tuple[int, ...]:
    """Other nodes, as many and still increasing: the last accepted node is exchanged for one that was not accepted."""
    if not accepted:
        return accepted
    last = accepted[-1]
    before = accepted[-2] if len(accepted) > 1 else ROOT
    others = [node for node in range(before + 1, len(tree)) if node != last]
    return (*accepted[:-1], others[0]) if others else accepted


class MadeUpBonus(Verifier):
    """Behind a fully accepted draft, the bonus token does not come from the target: it is its neighbour in the vocabulary."""

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        verdicts = super().judge(sequences, trees, logits)
        return [_with_other_bonus(tree, verdict, logits.shape[-1]) for tree, verdict in zip(trees, verdicts, strict=True)]


def _with_other_bonus(tree: TokenTree, verdict: Verdict, vocabulary: int) -> Verdict:
    if not verdict.accepted or tree.children()[verdict.accepted[-1]]:
        return verdict
    return replace(verdict, tokens=(*verdict.tokens[:-1], (verdict.tokens[-1] + 1) % vocabulary))


class PlainWalk(Verifier):
    """Recursive rejection with any rule of a node, one sequence and one node at a time; with a right rule, a second opinion.

    Args:
        rule: of a node.
    """

    def __init__(self, rule: Opening) -> None:
        super().__init__()
        self.node_rule = rule

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        verdicts, start = [], 0
        for sequence, tree in zip(sequences, trees, strict=True):
            verdicts.append(self._walk(sequence, tree, logits[start : start + len(tree)]))
            start += len(tree)
        return verdicts

    def _walk(self, sequence: Sequence, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"]) -> Verdict:
        laws = target_distribution(logits.double(), sequence.request.sampling)
        drafts = {} if tree.proposal is None else tree.proposal.q
        replacement = tree.proposal is not None and tree.proposal.replacement
        children = tree.children()
        node, accepted = ROOT, list[int]()
        while True:
            position = len(sequence.tokens) + tree.depth[node]
            draft = drafts.get(node)
            rule = self.node_rule(laws[node], None if draft is None else draft.dense(laws.shape[-1]), replacement)
            below = None
            for rank, child in enumerate(children[node]):
                if uniform(sequence.seed, position, Purpose.ACCEPT, rank) < rule.offer(tree.token[child]):
                    below = child
                    break
                rule = rule.rejected(tree.token[child])
            if below is None:
                purpose = Purpose.RESIDUAL if children[node] else Purpose.TARGET
                last = draw(rule.law()[None], [uniform(sequence.seed, position, purpose)])
                return Verdict(tuple(accepted), (*(tree.token[step] for step in accepted), *last))
            accepted.append(below)
            node = below


@dataclass(frozen=True, slots=True)
class Pretender:
    """Chooses the likeliest tokens of a law but claims to have drawn them from it, so that they are judged by the ratio test.

    Args:
        honest: a drafter whose trees carry the laws.
    """

    honest: Drafter

    @property
    def taps(self) -> TapRequest:
        """Those of the honest drafter."""
        return self.honest.taps

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Each root's child becomes the likeliest token of its law; what was below no longer applies and goes."""
        return [
            self._pretend(tree) for tree in self.honest.propose(sequences, [DraftLimits(min(1, x.nodes), min(1, x.depth)) for x in limits])
        ]

    def _pretend(self, tree: TokenTree) -> TokenTree:
        if len(tree) == 1 or tree.proposal is None:
            return tree
        law: Distribution = tree.proposal.q[ROOT]
        place = int(torch.as_tensor(law.probs).argmax())
        likeliest = place if law.ids is None else int(law.ids[place])
        return TokenTree.chain(tree.token[ROOT], [likeliest], Proposal({ROOT: law}))

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """The honest drafter learns."""
        self.honest.observe(sequences, trees, verdicts, taps)

    def release(self, sequence: Sequence) -> None:
        self.honest.release(sequence)

    def memory_bytes(self) -> int:
        """Those of the honest drafter."""
        return self.honest.memory_bytes()

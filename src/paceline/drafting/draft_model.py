"""A smaller model drafts: a chain, or a static tree grown layer by layer, over a memory of its own.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023), static trees as in SpecInfer (Miao et al. 2024) and Sequoia
(Chen et al. 2024): siblings are drawn without replacement from the draft's distribution when the target samples, and are the likeliest
tokens when it is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paceline.core.batch import NO_TAPS, ForwardBatch, Segment, TapRequest, Taps
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import ROOT, Distribution, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits, ForwardRunner
from paceline.drafting.growth import Growth, draw_counters, draw_without_replacement, tree_rows


@dataclass(frozen=True, slots=True)
class DraftModelConfig:
    """Options of the draft model.

    Args:
        length: depth of the draft.
        branching: children per node at each depth, `x`-separated as in `3x2x1`; empty is a chain. Depths beyond the list have one.
        temperature: of the draft when the target samples; negative means the target's own.
    """

    length: int = 4
    branching: str = ""
    temperature: float = -1.0

    def __post_init__(self) -> None:
        if self.length < 0:
            raise UsageError(f"draft-model: length={self.length} must be >= 0")
        try:
            widths = self.widths
        except ValueError:
            raise UsageError(f"draft-model: branching={self.branching!r} must be numbers joined by x, as in 3x2x1") from None
        if any(width < 1 for width in widths):
            raise UsageError(f"draft-model: branching={self.branching!r} must not contain zero")

    @property
    def widths(self) -> list[int]:
        """Children per node at each depth."""
        given = [int(part) for part in self.branching.split("x")] if self.branching else []
        return (given + [1] * self.length)[: self.length]


@dataclass(slots=True)
class Lane:
    """One sequence inside the draft model: its memory there, and the last draft's rows that a verdict may keep."""

    memory: Any
    lead: int = 0  # catch-up rows fed before the root of the last draft
    rows: list[int | None] = field(default_factory=list)  # scratch row of each node of the last tree


class DraftModel:
    """Drafts with a second decoder.

    The draft's memory trails the target's output by the tokens it has not read: one after a partial acceptance, two after a full one
    (the last drafted token was never fed, and the bonus is new). They are fed together with the root of the next draft.
    """

    Config = DraftModelConfig
    taps: TapRequest = NO_TAPS

    def __init__(self, config: DraftModelConfig, runner: ForwardRunner, eos: frozenset[int]) -> None:
        self.config, self.runner, self.eos = config, runner, eos
        self.forwards = 0
        self._lanes: dict[int, Lane] = {}

    @classmethod
    def build(cls, config: DraftModelConfig, context: DraftContext) -> DraftModel:
        """A drafter over the context's draft runner.

        Raises:
            UsageError: if the user named no draft model.
        """
        if context.draft is None:
            raise UsageError("method 'draft-model' needs a draft model; name one with draft=... (--draft)")
        return cls(config, context.draft, context.eos)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Grow all trees together, one draft forward per depth."""
        growths = {}
        for sequence, limit in zip(sequences, limits, strict=True):
            widths = self._widths(limit)
            if widths:
                growths[sequence.uid] = (sequence, widths, Growth([sequence.tokens[-1]], [-1], [0], [None]))
        for depth in range(max((len(widths) for _, widths, _ in growths.values()), default=0)):
            jobs = [(s, g, w[depth]) for s, w, g in growths.values() if depth < len(w) and g.frontier]
            if jobs:  # none are left when every branch has drafted the end of the text
                self._deepen(jobs, depth)
        return [self._finish(sequence, growths.get(sequence.uid)) for sequence in sequences]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Keep the draft memory of what was accepted."""
        for sequence, verdict in zip(sequences, verdicts, strict=True):
            lane = self._lanes.get(sequence.uid)
            if lane is None or not lane.rows:
                continue
            path = [lane.rows[node] for node in (ROOT, *verdict.accepted)]
            read = [row for row in path if row is not None]
            lane.memory.commit([*range(lane.lead), *read])
            lane.rows = []

    def release(self, sequence: Sequence) -> None:
        lane = self._lanes.pop(sequence.uid, None)
        if lane is not None:
            lane.memory.truncate(min(lane.memory.length, len(sequence.tokens)))  # accepted tokens behind a cut never became output
            self.runner.memory.release(lane.memory, sequence.tokens[: lane.memory.length])

    def memory_bytes(self) -> int:
        """Bytes of draft KV in use."""
        return sum(int(lane.memory.bytes()) for lane in self._lanes.values())

    def _widths(self, limit: DraftLimits) -> list[int]:
        """Branching that stays within the node and depth limits."""
        widths: list[int] = []
        nodes, layer = 0, 1
        for width in self.config.widths[: limit.depth]:
            layer *= width
            if nodes + layer > limit.nodes:
                break
            nodes += layer
            widths.append(width)
        return widths

    def _deepen(self, jobs: list[tuple[Sequence, Growth, int]], depth: int) -> None:
        """Read every frontier and give each of its nodes children."""
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for sequence, growth, _ in jobs:
            lane = self._lane(sequence)
            lead: list[int] = []
            if depth == 0:
                lead = sequence.tokens[lane.memory.length : -1]
                lane.lead = len(lead)
                lane.memory.reserve(lane.lead + 1 + tree_rows(self.config.widths))
            segments.append(self._segment(lane, growth, len(lead)))
            ids.extend([*lead, *(growth.token[node] for node in growth.frontier)])
            root = lane.memory.length + lane.lead
            positions.extend([*range(lane.memory.length, root)] if lead else [])
            positions.extend(root + growth.depth[node] for node in growth.frontier)
            wanted.extend(range(len(ids) - len(growth.frontier), len(ids)))
        logits = self.runner.forward(ForwardBatch(ids, positions, segments, wanted)).logits
        self.forwards += 1
        start = 0
        for sequence, growth, width in jobs:
            rows = logits[start : start + len(growth.frontier)]
            start += len(growth.frontier)
            self._branch(sequence, growth, rows, width)

    def _segment(self, lane: Lane, growth: Growth, lead: int) -> Segment:
        """The frontier's rows: behind the lead at first, later behind the scratch rows of the layers above."""
        used = lane.lead + sum(row is not None for row in growth.row)
        for at, node in enumerate(growth.frontier):
            growth.row[node] = used + at
        if growth.frontier == [ROOT]:
            return Segment(lane.memory, lead + 1)
        span = used + len(growth.frontier)
        mask = torch.zeros(len(growth.frontier), span, dtype=torch.bool)
        mask[:, : lane.lead] = True
        for at, node in enumerate(growth.frontier):
            while node != -1:
                mask[at, growth.row[node]] = True
                node = growth.parent[node]
        root = lane.memory.length + lane.lead
        place = [*range(lane.memory.length, root), *(root + growth.depth[n] for n in growth.read_order)]
        return Segment(lane.memory, len(growth.frontier), mask, range(used, span), place)

    def _branch(self, sequence: Sequence, growth: Growth, logits: torch.Tensor, width: int) -> None:
        """Children of every frontier node: the likeliest tokens for a greedy target, draws without replacement for a sampling one."""
        sampling = sequence.request.sampling
        fresh: list[int] = []
        if sampling.greedy:
            best = logits.topk(width, -1).indices.tolist() if width > 1 else [[token] for token in logits.argmax(-1).tolist()]
            for node, tokens in zip(growth.frontier, best, strict=True):
                fresh.extend(growth.add(token, node) for token in tokens)
        else:
            law = target_distribution(logits, self._draft_sampling(sampling)).to("cpu", torch.float64)
            for node, probs in zip(growth.frontier, law, strict=True):
                growth.q[node] = Distribution(probs)
                position = len(sequence.tokens) + growth.depth[node]
                counters = draw_counters(len(sequence.tokens), node, width)
                numbers = [uniform(sequence.seed, position, Purpose.DRAFT, counter) for counter in counters]
                fresh.extend(growth.add(token, node) for token in draw_without_replacement(probs, width, numbers))
        growth.frontier = [node for node in fresh if growth.token[node] not in self.eos]

    def _draft_sampling(self, sampling: Sampling) -> Sampling:
        """The target's transform without what depends on history, at the draft's temperature."""
        temperature = sampling.temperature if self.config.temperature < 0 else self.config.temperature
        return replace(
            sampling,
            temperature=temperature or sampling.temperature,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            no_repeat_ngram=0,
        )

    def _finish(self, sequence: Sequence, grown: tuple[Sequence, list[int], Growth] | None) -> TokenTree:
        if grown is None:
            lane = self._lanes.get(sequence.uid)
            if lane is not None:
                lane.rows = []  # nothing was read for this step; the next draft catches up
            return TokenTree.chain(sequence.tokens[-1])
        tree, order = grown[2].tree(sampled=not sequence.request.sampling.greedy)
        self._lanes[sequence.uid].rows = [grown[2].row[node] for node in order]
        return tree

    def _lane(self, sequence: Sequence) -> Lane:
        lane = self._lanes.get(sequence.uid)
        if lane is None:
            reserve = sequence.remaining + tree_rows(self.config.widths)
            lane = self._lanes[sequence.uid] = Lane(self.runner.memory.admit(sequence.tokens, reserve=reserve))
        return lane

"""Sequences inside a draft model: what it has read of each, and one forward that reads the frontiers of many growing trees."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.request import Sequence
from paceline.core.tree import ROOT
from paceline.core.verdict import Verdict
from paceline.drafting.base import ForwardRunner
from paceline.drafting.growth import Growth


@dataclass(slots=True)
class Lane:
    """One sequence inside the draft model: its memory there, and the last draft's rows that a verdict may keep."""

    memory: Any
    lead: int = 0  # catch-up rows fed before the root of the last draft
    rows: list[int | None] = field(default_factory=list)  # scratch row of each node of the last tree


@dataclass(slots=True)
class DraftLanes:
    """The draft model's side of every sequence.

    The draft's memory trails the target's output by the tokens it has not read: one after a partial acceptance, two after a full one
    (the last drafted token was never fed, and the bonus is new). They are fed together with the root of the next draft.

    Args:
        runner: weights and memory of the draft model.
    """

    runner: ForwardRunner
    forwards: int = 0  # calls of the draft model
    rows: int = 0  # rows read in them, catch-up included
    _lanes: dict[int, Lane] = field(default_factory=dict)

    def read(self, jobs: Many[tuple[Sequence, Growth, int]]) -> Float[Tensor, "frontiers vocabulary"]:
        """Read the frontier of every growth in one forward. A node is read after its parent, and once.

        Args:
            jobs: sequence, its growing tree, and the most nodes that tree may still get to have (scratch rows are reserved for them when
                its root is read).

        Returns:
            Draft logits, frontier after frontier.
        """
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for sequence, growth, nodes in jobs:
            lane = self._lane(sequence, nodes)
            lead: list[int] = []
            if growth.frontier == [ROOT]:
                lead = sequence.tokens[lane.memory.length : -1]
                lane.lead = len(lead)
                lane.memory.reserve(lane.lead + 1 + nodes)
            segments.append(_segment(lane, growth, len(lead)))
            ids.extend([*lead, *(growth.token[node] for node in growth.frontier)])
            root = lane.memory.length + lane.lead
            positions.extend([*range(lane.memory.length, root)] if lead else [])
            positions.extend(root + growth.depth[node] for node in growth.frontier)
            wanted.extend(range(len(ids) - len(growth.frontier), len(ids)))
        logits = self.runner.forward(ForwardBatch(ids, positions, segments, wanted)).logits
        self.forwards += 1
        self.rows += len(ids)
        return logits

    def keep(self, sequence: Sequence, rows: list[int | None]) -> None:
        """Remember which scratch row each node of the proposed tree was read into; none where nothing was read for this step."""
        lane = self._lanes.get(sequence.uid)
        if lane is not None:
            lane.rows = rows

    def observe(self, sequences: Many[Sequence], verdicts: Many[Verdict]) -> None:
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
        """Give a sequence's draft memory back."""
        lane = self._lanes.pop(sequence.uid, None)
        if lane is not None:
            lane.memory.truncate(min(lane.memory.length, len(sequence.tokens)))  # accepted tokens behind a cut never became output
            self.runner.memory.release(lane.memory, sequence.tokens[: lane.memory.length])

    def memory_bytes(self) -> int:
        """Bytes of draft KV in use."""
        return sum(int(lane.memory.bytes()) for lane in self._lanes.values())

    def _lane(self, sequence: Sequence, nodes: int) -> Lane:
        lane = self._lanes.get(sequence.uid)
        if lane is None:
            reserve = sequence.remaining + nodes
            lane = self._lanes[sequence.uid] = Lane(self.runner.memory.admit(sequence.tokens, reserve=reserve))
        return lane


def _segment(lane: Lane, growth: Growth, lead: int) -> Segment:
    """The frontier's rows: behind the lead at first, later behind the scratch rows of the nodes read before."""
    used = lane.lead + growth.read
    for at, node in enumerate(growth.frontier):
        growth.row[node] = used + at
    growth.read += len(growth.frontier)
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

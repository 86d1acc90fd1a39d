"""Synthetic second-order sources that stand in for target and draft: methods run on them through the real drafters and verifier.

Here a "model" is a table of next-token laws, and a forward is a look-up, so thousands of steps take seconds, the truth is known, and what
is measured (tokens per target call, draft forwards, calibration) does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import ForwardBatch, ForwardResult, Segment, Taps
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.drafting.base import Drafter, DraftLimits
from paceline.verification.verifier import Verifier

Table = Float[Tensor, "before last vocabulary"]  # logits


@dataclass(slots=True)
class TableMemory:
    """What a table remembers of one sequence: committed tokens, and scratch rows by offset as (token, position)."""

    tokens: list[int] = field(default_factory=list)
    scratch: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def runs(self, stop: int) -> list[tuple[int, int]]:
        """Of no use to a table."""
        return [(0, stop)]

    def reserve(self, rows: int) -> None:
        """Room is unlimited."""

    def commit(self, rows: Many[int]) -> None:
        """Keep some scratch rows."""
        self.tokens.extend(self.scratch[row][0] for row in rows)
        self.scratch = {}

    def truncate(self, length: int) -> None:
        """Forget tokens from `length` on, and all scratch."""
        del self.tokens[length:]
        self.scratch = {}

    def bytes(self) -> int:
        return 8 * len(self.tokens)


@dataclass(slots=True)
class TableRunner:
    """A `ForwardRunner` whose network is a table of logits; it honours masks and positions, so wrong ones change its answers.

    Args:
        table: logits after each pair of tokens.
        forwards, rows: counted.
    """

    table: Table
    forwards: int = 0
    rows: int = 0
    admitted: int = 0

    @property
    def memory(self) -> Any:
        """Itself: there is nothing to share."""
        return self

    def admit(self, ids: Many[int], reserve: int = 0) -> TableMemory:
        """An empty memory."""
        self.admitted += 1
        return TableMemory()

    def release(self, memory: TableMemory, ids: Many[int] | None = None) -> None:
        """Forget a sequence."""
        self.admitted -= 1

    def probe(self, rows: int) -> float:
        """A table has no cost worth timing; a unit keeps planners going."""
        return 1.0

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Look every row up by its own token and the one before it on its path."""
        found, start = [], 0
        for segment in batch.segments:
            rows = range(start, start + segment.rows)
            found.extend(self._read(segment, [batch.ids[row] for row in rows], [batch.positions[row] for row in rows]))
            start += segment.rows
        self.forwards += 1
        self.rows += batch.rows
        wanted = range(len(found)) if batch.logit_rows is None else batch.logit_rows
        return ForwardResult(torch.stack([found[row] for row in wanted]), Taps())

    def _read(self, segment: Segment, ids: list[int], positions: list[int]) -> list[Tensor]:
        memory: TableMemory = segment.memory  # type: ignore[assignment]  # this runner's own kind
        offsets = list(segment.offsets if segment.offsets is not None else range(segment.rows))
        memory.scratch.update(zip(offsets, zip(ids, positions, strict=True), strict=True))
        laws = []
        mask = segment.visible()
        for at, (token, position) in enumerate(zip(ids, positions, strict=True)):
            visible = range(offsets[at]) if mask is None else mask[at].nonzero().flatten().tolist()
            before = [memory.scratch[row][0] for row in visible if memory.scratch[row][1] == position - 1]
            if position > 0 and not before:
                before = [memory.tokens[position - 1]]
            laws.append(self.table[before[0] if before else token, token])
        return laws


@dataclass(frozen=True, slots=True)
class Outcome:
    """One method on one pair of sources.

    Args:
        tokens: emitted.
        target_calls: forwards of the target.
        draft_calls: forwards of the draft.
        nodes: drafted.
        output: the tokens of every sequence.
    """

    tokens: int
    target_calls: int
    draft_calls: int
    nodes: int
    output: list[list[int]]

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.target_calls


def simulate(
    target: Table, drafter: Drafter, sampling: Sampling, *, tokens: int, sequences: int = 1, prompt: Many[int] = (0, 1), nodes: int = 64
) -> Outcome:
    """Decode from a table with a drafter and the house's verifier.

    Args:
        target: logits of the target.
        drafter: over a `TableRunner` of the draft's table; released at the end.
        sampling: the seed of sequence i is `sampling.seed + i`.
        tokens: per sequence, at least; a last verdict may bring more, which are kept.
        sequences: decoded together.
        prompt: of every sequence, two tokens or more.
        nodes: most nodes per tree.
    """
    from dataclasses import replace

    verifier = Verifier()
    members = [
        Sequence(uid, Request(tuple(prompt), replace(sampling, seed=sampling.seed + uid), max_tokens=tokens)) for uid in range(sequences)
    ]
    calls = drafted = 0
    while live := [member for member in members if len(member.output) < tokens]:
        trees = drafter.propose(live, [DraftLimits(nodes, nodes)] * len(live))
        pairs: list[tuple[int, int]] = []
        for member, tree in zip(live, trees, strict=True):
            for node, parent in enumerate(tree.parent):
                pairs.append((member.tokens[-2] if parent < 0 else tree.token[parent], tree.token[node]))
        verdicts = verifier.judge(live, trees, target[[a for a, _ in pairs], [b for _, b in pairs]])
        for member, tree, verdict in zip(live, trees, verdicts, strict=True):
            member.tokens.extend(verdict.tokens)
            drafted += len(tree) - 1
        calls += len(live)
        drafter.observe(live, trees, verdicts, Taps())
    for member in members:
        drafter.release(member)
    emitted = sum(len(member.output) for member in members)
    return Outcome(emitted, calls, int(getattr(drafter, "forwards", 0)), drafted, [member.output for member in members])

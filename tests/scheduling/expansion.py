"""Expansion: every row stands in the batch once per draft prefix, each copy with a cache of its own. Exact, K-fold memory: an oracle.

This is how an early serving engine scored drafts. Nothing in it depends on masks between drafted tokens or on dropping rejected ones: a
copy reads its prefix as ordinary text, and the copy that got furthest becomes the sequence.
"""

from __future__ import annotations

import torch

from paceline.core.batch import ForwardBatch, ForwardResult, Segment
from paceline.engine.rectangle import DenseRunner
from paceline.scheduling.dense.row import DenseRow


class ExpansionRunner(DenseRunner):
    """Answers batches of chains through copies; `copies` is the most that stood in one forward."""

    copies = 0

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        wanted = set(range(batch.rows) if batch.logit_rows is None else batch.logit_rows)
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        scored: list[int] = []
        longest: list[tuple[DenseRow, DenseRow]] = []
        start = 0
        for segment in batch.segments:
            assert segment.visible() is None, "expansion covers chains"
            assert segment.offsets is None, "expansion covers whole drafts"
            row = segment.memory
            assert isinstance(row, DenseRow)
            prefixes = [end for end in range(1, segment.rows + 1) if start + end - 1 in wanted] or [segment.rows]
            for end in prefixes:
                copy = row.fork()
                ids += batch.ids[start : start + end]
                positions += batch.positions[start : start + end]
                segments.append(Segment(copy, end))
                if start + end - 1 in wanted:
                    scored.append(len(ids) - 1)
            longest.append((row, copy))
            start += segment.rows
        self.copies = max(self.copies, len(segments))
        result = super().forward(ForwardBatch(ids, positions, segments, scored))
        for row, copy in longest:  # scratch of a row is what its longest copy has read
            row.aside, row.index, row.columns, row.live = copy.snapshot(), None, [], copy.live
        for segment in segments:
            self.dense.release(segment.memory)  # type: ignore[arg-type]
        return ForwardResult(torch.as_tensor(result.logits), result.taps)

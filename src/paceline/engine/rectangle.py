"""A runner over a dense cache: ragged batches become rectangles of equally many query rows, and their results ragged ones again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.core.batch import ForwardBatch, ForwardResult, Segment, Taps
from paceline.core.errors import UsageError
from paceline.engine.runner import Runner
from paceline.memory.runs import Run, cut
from paceline.models.decoder import Decoder
from paceline.scheduling.dense.memory import DenseMemory
from paceline.scheduling.dense.row import DenseRow


@dataclass(frozen=True, slots=True)
class WholeRow:
    """A row of the rectangle as attention sees it: every column a scratch slot, so that the segment's mask governs all of them.

    Args:
        base: first slot of the row.
    """

    base: int
    length: int = 0

    def runs(self, stop: int) -> Sequence[Run]:
        """One range: columns are adjacent."""
        return [(self.base, self.base + stop)]


@dataclass(frozen=True, slots=True)
class Part:
    """Segments of a batch that share a rectangle.

    Args:
        members: indices of the segments.
        width: query rows of each; shorter segments are padded.
        flush: whether segments end in the same column (prompts that begin), instead of beginning in the same one (drafts).
    """

    members: list[int]
    width: int
    flush: bool


class DenseRunner(Runner):
    """Runs batches over a `DenseMemory`.

    Every forward has as many query rows for each sequence as the longest segment, padding included, over as many keys for each as the
    rectangle is wide; what is not content is masked. The network, the attention plan and positions are those of the ragged runner.

    Args:
        decoder: the network.
        memory: its dense cache.
    """

    def __init__(self, decoder: Decoder, memory: DenseMemory) -> None:
        super().__init__(decoder, memory)
        self.dense = memory
        self.padding = 0  # query rows that were computed for nobody
        self._windowed = any(spec.mixer.window is not None for spec in decoder.config.layers)

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """See `Runner.forward`. Prompts that begin beside running sequences take a forward of their own.

        Raises:
            UsageError: if rows skip scratch offsets.
        """
        rows = [_row(segment) for segment in batch.segments]
        starts = np.cumsum([0, *(segment.rows for segment in batch.segments)]).tolist()
        parts = _parts(batch.segments, rows)
        first = self._arrange(rows, max(part.width for part in parts))
        wanted = set(range(batch.rows) if batch.logit_rows is None else batch.logit_rows)
        columns = [self._columns(rows, batch.segments, part, first) for part in parts]
        results = []
        for part, own in zip(parts, columns, strict=True):
            results.append(self._run(batch, part, starts, rows, own, first, wanted))
        self.dense.end = first + max(part.width for part in parts)
        return _merge(batch, parts, starts, results)

    def _arrange(self, rows: Sequence[DenseRow], block: int) -> int:
        """Bring rows into line; returns the first column of the block."""
        self.dense.arrange(rows, block)
        return self.dense.end

    def _columns(self, rows: Sequence[DenseRow], segments: Sequence[Segment], part: Part, first: int) -> list[Run]:
        """Columns that each segment of a part writes; they become the scratch of its row."""
        found = []
        for member in part.members:
            count = segments[member].rows
            start = first + part.width - count if part.flush else first
            found.append((start, start + count))
            rows[member].write([found[-1]])
        return found

    def _run(
        self,
        batch: ForwardBatch,
        part: Part,
        starts: Sequence[int],
        rows: Sequence[DenseRow],
        columns: Sequence[Run],
        first: int,
        wanted: set[int],
    ) -> ForwardResult:
        """One rectangular forward; its result holds only what the ragged rows asked for, in their order."""
        width, stop = part.width, first + part.width
        count = len(part.members) * width
        places: list[int] = []  # rectangle row of each ragged row
        logit_rows: list[int] = []
        ids, positions = [0] * count, [0] * count
        segments = []
        for at, (member, (low, high)) in enumerate(zip(part.members, columns, strict=True)):
            top = at * width + low - first
            ragged = range(starts[member], starts[member + 1])
            own = self._positions(batch.positions[ragged.start : ragged.stop], rows[member], (low, high))
            positions[top : top + len(ragged)] = own
            if batch.embeddings is None:
                ids[top : top + len(ragged)] = batch.ids[ragged.start : ragged.stop]
            logit_rows.extend(top + row - ragged.start for row in ragged if row in wanted)
            places.extend(range(top, top + len(ragged)))
            visible = self._visible(batch.segments[member], rows[member], (low, high), first, width)
            known = self._key_positions(batch.segments[member], rows[member], own, stop) if self._windowed else None
            view = WholeRow(self.dense.base(rows[member].index or 0))
            segments.append(Segment(view, width, torch.from_numpy(visible), range(first, stop), known))
        embeddings = None
        if batch.embeddings is not None:
            picked = [row for member in part.members for row in range(starts[member], starts[member + 1])]
            embeddings = batch.embeddings.new_zeros(count, batch.embeddings.shape[-1])
            embeddings[places] = batch.embeddings[picked]
        self.padding += count - len(places)
        result = super().forward(ForwardBatch(ids, positions, segments, logit_rows, embeddings, batch.taps))
        return ForwardResult(result.logits, _picked(result.taps, places))

    def _positions(self, positions: Sequence[int], row: DenseRow, columns: Run) -> Sequence[int]:
        """Positions of a segment's rows: data, whatever the padding in front of them."""
        return positions

    def _visible(self, segment: Segment, row: DenseRow, columns: Run, first: int, width: int) -> npt.NDArray[np.bool_]:
        """What each query row of one sequence sees, (width, first + width). Padding rows see themselves, so that their softmax exists."""
        low, high = columns
        visible = np.zeros((width, first + width), dtype=np.bool_)
        visible[np.arange(width), first + np.arange(width)] = True
        own = visible[low - first : high - first]
        own[:, low:high] = np.tri(high - low, dtype=np.bool_)
        context = np.zeros(first + width, dtype=np.bool_)
        seen = segment.visible()
        if seen is None:  # committed tokens; scratch of earlier forwards stays invisible
            for start, stop in cut(row.columns, 0, row.length):
                context[start:stop] = True
            own |= context
        else:
            tokens = np.concatenate([np.arange(start, stop) for start, stop in row.columns])
            own[:, low:high] = False
            own[:, tokens[: row.length]] = True
            own[:, tokens[row.length : row.length + segment.span]] = seen.cpu().numpy()
        return visible

    def _key_positions(self, segment: Segment, row: DenseRow, own: Sequence[int], stop: int) -> list[int]:
        """Position of every column's token, for layers with a window; zero where there is none."""
        known = np.zeros(stop, dtype=np.int64)
        tokens = np.concatenate([np.arange(low, high) for low, high in row.columns])
        known[tokens[: row.length]] = np.arange(row.length)
        if segment.scratch_positions is not None:
            known[tokens[row.length : row.length + segment.span]] = segment.scratch_positions
        known[tokens[len(tokens) - len(own) :]] = own
        found: list[int] = known.tolist()
        return found


def _row(segment: Segment) -> DenseRow:
    """The dense row behind a segment.

    Raises:
        UsageError: if the segment's rows do not continue its scratch.
    """
    row = segment.memory
    assert isinstance(row, DenseRow), "a dense runner was given another memory's sequence"
    scratch = row.live - row.length
    expected = range(scratch, scratch + segment.rows)
    given = range(segment.rows) if segment.offsets is None else segment.offsets
    if list(given) != list(expected):
        raise UsageError(
            f"a dense cache writes scratch rows in order: {list(expected)} come next, not {list(given)}; use batching='ragged'"
        )
    return row


def _parts(segments: Sequence[Segment], rows: Sequence[DenseRow]) -> list[Part]:
    """One rectangle; two where sequences begin with more rows than those that are under way need."""
    begun = [at for at, row in enumerate(rows) if row.live]
    widest = max((segments[at].rows for at in begun), default=0)
    fresh = [at for at, row in enumerate(rows) if not row.live and segments[at].rows > widest]
    others = [at for at in range(len(rows)) if at not in fresh]
    return [Part(members, max(segments[at].rows for at in members), members is fresh) for members in (fresh, others) if members]


def _picked(taps: Taps, places: list[int]) -> Taps:
    """Taps of some rows."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[places]

    return Taps(
        None if taps.final_hidden is None else pick(taps.final_hidden),
        {layer: pick(tensor) for layer, tensor in taps.layer_inputs.items()},
        {layer: pick(tensor) for layer, tensor in taps.queries.items()},
        {layer: pick(tensor) for layer, tensor in taps.keys.items()},
        {layer: (pick(key), pick(value)) for layer, (key, value) in taps.keys_values.items()},
        {layer: pick(tensor) for layer, tensor in taps.lse.items()},
    )


def _merge(batch: ForwardBatch, parts: Sequence[Part], starts: Sequence[int], results: Sequence[ForwardResult]) -> ForwardResult:
    """The results of one or two rectangles as that of the ragged batch."""
    wanted = list(range(batch.rows)) if batch.logit_rows is None else list(batch.logit_rows)
    rows = [row for part in parts for member in part.members for row in range(starts[member], starts[member + 1])]
    if len(parts) == 1 and wanted == sorted(wanted):
        return results[0]
    chosen = set(wanted)
    place = {row: at for at, row in enumerate(row for row in rows if row in chosen)}
    logits = torch.cat([result.logits for result in results])[[place[row] for row in wanted]]
    back = torch.tensor(rows).argsort().tolist()
    return ForwardResult(logits, _joined([result.taps for result in results], back))


def _joined(taps: Sequence[Taps], back: list[int]) -> Taps:
    """Taps of several forwards in the order of the batch's rows."""
    first = taps[0]

    def join(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[back]

    hidden = [tap.final_hidden for tap in taps if tap.final_hidden is not None]
    return Taps(
        join(hidden) if hidden else None,
        {layer: join([tap.layer_inputs[layer] for tap in taps]) for layer in first.layer_inputs},
        {layer: join([tap.queries[layer] for tap in taps]) for layer in first.queries},
        {layer: join([tap.keys[layer] for tap in taps]) for layer in first.keys},
        {
            layer: (join([tap.keys_values[layer][0] for tap in taps]), join([tap.keys_values[layer][1] for tap in taps]))
            for layer in first.keys_values
        },
        {layer: join([tap.lse[layer] for tap in taps]) for layer in first.lse},
    )

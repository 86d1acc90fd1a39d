"""The attention plan: everything about one forward's reads and writes that does not depend on the layer, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.batch import Segment


@dataclass(frozen=True, slots=True)
class Exactness:
    """Shapes that make a row's bits independent of the rows beside it (see docs/concepts/bit-exact.md).

    Args:
        min_rows: forwards and attention calls are padded to at least this many rows.
        key_block: key lengths are padded to whole blocks of this many masked keys.
    """

    min_rows: int = 4
    key_block: int = 512


@dataclass(frozen=True, slots=True)
class Reach:
    """What one segment's queries attend to.

    Args:
        rows: the segment's rows in the batch.
        keys: physical slots of its keys in logical order: a slice (a view) or an index (a gather).
        length: number of keys, padding included.
        causal: whether plain causal attention from an empty memory describes it, without a mask.
        mask: additive mask per window, `None` where every key is visible.
    """

    rows: slice
    keys: slice | Int[Tensor, " keys"]
    length: int
    causal: bool
    mask: Float[Tensor, "rows keys"] | None


@dataclass(slots=True)
class AttentionPlan:
    """Reads and writes of one forward. Layers differ only by window and head grouping; those variants are cached.

    Args:
        segments: of the batch, in row order.
        positions: of the rows, on the host.
        dtype, device: of the queries.
        exact: bit-exact shapes, or `None`.
    """

    segments: Sequence[Segment]
    positions: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    exact: Exactness | None = None
    write: slice | Int[Tensor, " rows"] = field(init=False)
    _reaches: dict[int | None, list[Reach]] = field(init=False, default_factory=dict)
    _folded: dict[tuple[int | None, int], list[Tensor | None]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        slots: list[int] = []
        for segment in self.segments:
            slots.extend(_scratch_slots(segment))
        first, rows = slots[0], len(slots)
        adjacent = slots == list(range(first, first + rows))
        self.write = slice(first, first + rows) if adjacent else torch.tensor(slots, device=self.device)

    def reaches(self, window: int | None) -> list[Reach]:
        """One reach per segment for layers of this window."""
        if window not in self._reaches:
            start, found = 0, []
            for segment in self.segments:
                found.append(self._reach(segment, start, window))
                start += segment.rows
            self._reaches[window] = found
        return self._reaches[window]

    def folded_masks(self, window: int | None, groups: int) -> list[Float[Tensor, "1 1 folded keys"] | None]:
        """Masks for queries folded as rows x groups, the shape in which grouped heads become extra query rows."""
        cached = self._folded.get((window, groups))
        if cached is None:
            cached = []
            for reach in self.reaches(window):
                mask = reach.mask
                cached.append(None if mask is None else (mask if groups == 1 else mask.repeat_interleave(groups, 0))[None, None])
            self._folded[window, groups] = cached
        return cached

    def _reach(self, segment: Segment, start: int, window: int | None) -> Reach:
        context, span = segment.memory.length, segment.span
        length = context + span
        rows = slice(start, start + segment.rows)
        keys = _key_slots(segment, length, self.device)
        positions = self.positions[rows]
        if window is not None and max(positions) < window:
            window = None  # nobody can look back past the window yet
        whole = segment.mask is None and segment.offsets is None
        if self.exact is None and whole and window is None and (segment.rows == 1 or context == 0):
            return Reach(rows, keys, length, causal=segment.rows > 1, mask=None)
        padded = length if self.exact is None else -(-length // self.exact.key_block) * self.exact.key_block
        height = segment.rows if self.exact is None else max(segment.rows, self.exact.min_rows)
        visible = torch.zeros(height, padded, dtype=torch.bool)
        visible[segment.rows :, 0] = True  # padding rows must see something, or their softmax is undefined
        visible[: segment.rows, :context] = True
        columns = slice(context, length) if segment.offsets is None else [context + offset for offset in segment.offsets]
        if segment.mask is None:
            visible[: segment.rows, columns] = torch.ones(segment.rows, segment.rows, dtype=torch.bool).tril()
        else:
            visible[: segment.rows, context:length] = segment.mask.to("cpu")
        if window is not None:
            key_position = torch.arange(padded)
            if segment.scratch_positions is not None:
                key_position[context:length] = torch.tensor(segment.scratch_positions)
            else:
                key_position[columns] = torch.tensor(positions)
            visible[: segment.rows] &= key_position > torch.tensor(positions)[:, None] - window
        mask = torch.zeros(height, padded, dtype=self.dtype).masked_fill_(~visible, float("-inf")).to(self.device)
        if padded != length:
            keys = _pad_keys(keys, padded)
        return Reach(rows, keys, padded, causal=False, mask=mask)


def _scratch_slots(segment: Segment) -> list[int]:
    """Physical slot of each row of a segment."""
    context = segment.memory.length
    slots: list[int] = []
    at = 0
    for low, high in segment.memory.runs(context + segment.span):
        behind = max(0, context - at)  # committed slots of this run
        slots.extend(range(low + behind, high))
        at += high - low
    return slots if segment.offsets is None else [slots[offset] for offset in segment.offsets]


def _key_slots(segment: Segment, length: int, device: torch.device) -> slice | Tensor:
    runs = segment.memory.runs(length)
    if len(runs) == 1:
        return slice(*runs[0])
    return torch.cat([torch.arange(low, high) for low, high in runs]).to(device)


def _pad_keys(keys: slice | Tensor, length: int) -> slice | Tensor:
    """Extend to `length` keys; what stands in the added slots is finite and masked."""
    if isinstance(keys, slice):
        return slice(keys.start, keys.start + length)
    return torch.cat([keys, keys[-1:].expand(length - len(keys))])

"""The attention plan: everything about one forward's reads and writes that does not depend on the layer, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.batch import GUARD, Segment

LANE_WASTE = 4  # padded query rows per real one, up to which one call for all sequences beats one call each


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


@dataclass(frozen=True, slots=True)
class Lanes:
    """Segments whose memories lie at equal distances in the pools, so that one strided view covers the keys of all of them.

    Args:
        rows: batch row of each lane's queries, lanes padded to equal height by repeating a row; `None` if rows already are in order.
        back: place of each batch row in the padded layout; `None` likewise.
        count, height: lanes, and query rows per lane.
        start, stride: first slot of the first lane, and slots between lanes.
        length: keys per lane; shorter lanes are masked.
        mask: additive (lanes, height, keys), `None` where all is visible.
    """

    rows: Int[Tensor, " padded"] | None
    back: Int[Tensor, " rows"] | None
    count: int
    height: int
    start: int
    stride: int
    length: int
    mask: Float[Tensor, "lanes height keys"] | None


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
    _lanes: dict[int | None, Lanes | None] = field(init=False, default_factory=dict)
    _lane_masks: dict[tuple[int | None, int], Tensor | None] = field(init=False, default_factory=dict)
    _folded: dict[tuple[int | None, int], list[Tensor | None]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        slots: list[int] = []
        for segment in self.segments:
            slots.extend(_scratch_slots(segment))
        first, rows = slots[0], len(slots)
        adjacent = slots == list(range(first, first + rows))
        self.write = slice(first, first + rows) if adjacent else torch.tensor(slots, device=self.device)

    @property
    def own(self) -> bool:
        """Whether a segment brings an attention of its own."""
        return any(segment.attention is not None for segment in self.segments)

    @property
    def mask_bytes(self) -> int:
        """Bytes of all masks made so far."""
        masks = [reach.mask for found in self._reaches.values() for reach in found]
        masks += [lanes.mask for lanes in self._lanes.values() if lanes is not None]
        masks += [*self._lane_masks.values(), *(mask for found in self._folded.values() for mask in found)]
        distinct = {mask.data_ptr(): mask.untyped_storage().nbytes() for mask in masks if mask is not None}
        return sum(distinct.values())

    def reaches(self, window: int | None) -> list[Reach]:
        """One reach per segment for layers of this window."""
        if window not in self._reaches:
            start, found = 0, []
            for segment in self.segments:
                found.append(self._reach(segment, start, window))
                start += segment.rows
            self._reaches[window] = found
        return self._reaches[window]

    def lanes(self, window: int | None) -> Lanes | None:
        """The segments as lanes of one view, where their memories happen to be evenly spaced; `None` otherwise."""
        if window not in self._lanes:
            self._lanes[window] = self._as_lanes(window)
        return self._lanes[window]

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

    def folded_lane_mask(self, window: int | None, groups: int) -> Float[Tensor, "lanes 1 folded keys"] | None:
        """The mask of `lanes` for queries folded as rows x groups."""
        key = (window, groups)
        if key not in self._lane_masks:
            lanes = self.lanes(window)
            mask = None if lanes is None or lanes.mask is None else lanes.mask.repeat_interleave(groups, 1)[:, None]
            self._lane_masks[key] = mask
        return self._lane_masks[key]

    def _as_lanes(self, window: int | None) -> Lanes | None:
        count = len(self.segments)
        height = max(segment.rows for segment in self.segments)
        if count == 1 or self.exact is not None or height * count > LANE_WASTE * len(self.positions):
            return None
        reaches = self.reaches(window)
        starts = [reach.keys.start if isinstance(reach.keys, slice) else -1 for reach in reaches]
        order = sorted(range(count), key=starts.__getitem__)
        stride = starts[order[1]] - starts[order[0]]
        if starts[order[0]] < 0 or stride <= 0 or any(starts[b] - starts[a] != stride for a, b in pairwise(order)):
            return None
        length = max(reach.length for reach in reaches)
        if length - reaches[order[-1]].length > GUARD:  # the last lane must end inside the pool
            return None
        uniform = all(
            reach.length == length and reach.mask is None and not reach.causal and reach.rows.stop - reach.rows.start == height
            for reach in reaches
        )
        mask = None if uniform else torch.full((count, height, length), float("-inf"), dtype=self.dtype)
        rows, back = [], [0] * len(self.positions)
        for lane, at in enumerate(order):
            reach = reaches[at]
            first, tall = reach.rows.start, reach.rows.stop - reach.rows.start
            for row in range(height):
                rows.append(first + min(row, tall - 1))
                if row < tall:
                    back[first + row] = lane * height + row
            if mask is not None:
                own = mask[lane, :tall, : reach.length]
                if reach.mask is not None:
                    own.copy_(reach.mask[:tall])
                elif reach.causal:
                    own.masked_fill_(torch.ones(tall, reach.length, dtype=torch.bool).tril(), 0.0)
                else:
                    own.zero_()
                mask[lane, tall:] = mask[lane, tall - 1]
        plain = rows == list(range(len(rows)))
        return Lanes(
            None if plain else torch.tensor(rows, device=self.device),
            None if plain else torch.tensor(back, device=self.device),
            count,
            height,
            starts[order[0]],
            stride,
            length,
            None if mask is None else mask.to(self.device),
        )

    def _reach(self, segment: Segment, start: int, window: int | None) -> Reach:
        context, span = segment.memory.length, segment.span
        length = context + span
        rows = slice(start, start + segment.rows)
        keys = _key_slots(segment, length, self.device)
        positions = self.positions[rows]
        if window is not None and max(positions) < window:
            window = None  # nobody can look back past the window yet
        if segment.canvas is not None and self.exact is None and window is None:
            return Reach(rows, keys, length, causal=False, mask=None)
        whole = segment.mask is None and segment.tree is None and segment.offsets is None and segment.canvas is None
        if self.exact is None and whole and window is None and (segment.rows == 1 or context == 0):
            return Reach(rows, keys, length, causal=segment.rows > 1, mask=None)
        padded = length if self.exact is None else -(-length // self.exact.key_block) * self.exact.key_block
        height = segment.rows if self.exact is None else max(segment.rows, self.exact.min_rows)
        visible = torch.zeros(height, padded, dtype=torch.bool)
        visible[segment.rows :, 0] = True  # padding rows must see something, or their softmax is undefined
        visible[: segment.rows, :context] = True
        columns = slice(context, length) if segment.offsets is None else [context + offset for offset in segment.offsets]
        if segment.canvas is not None:
            visible[: segment.rows, context:length] = True
        elif (own := segment.visible()) is None:
            visible[: segment.rows, columns] = torch.ones(segment.rows, segment.rows, dtype=torch.bool).tril()
        else:
            visible[: segment.rows, context:length] = own.to("cpu")
        if window is not None:
            visible[: segment.rows] &= key_positions(segment, positions, padded) > torch.tensor(positions)[:, None] - window
        mask = torch.zeros(height, padded, dtype=self.dtype).masked_fill_(~visible, float("-inf")).to(self.device)
        if padded != length:
            keys = _pad_keys(keys, padded)
        return Reach(rows, keys, padded, causal=False, mask=mask)


def key_positions(segment: Segment, positions: Sequence[int], length: int) -> Int[Tensor, " keys"]:
    """Position of each of `length` keys of a segment, in logical order: committed ones count from 0, scratch has positions of its own.

    Args:
        positions: of the segment's rows.
    """
    known = torch.arange(length)
    context = segment.memory.length
    if segment.scratch_positions is not None:
        known[context : context + segment.span] = torch.tensor(segment.scratch_positions)
    elif segment.offsets is None:
        known[context : context + segment.span] = torch.tensor(positions)
    else:
        known[[context + offset for offset in segment.offsets]] = torch.tensor(positions)
    return known


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

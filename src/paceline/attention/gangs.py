"""Rows that read only some blocks of their canvas, as kernels take them: sixteen at most that lie in one block of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from paceline.core.batch import Segment, SegmentAttention

if TYPE_CHECKING:
    from paceline.attention.sparse_pattern import BlockPattern

MOST_ROWS = 16
UNIT = 32  # a pattern's blocks are a multiple of so many positions


@dataclass(frozen=True, slots=True)
class Gangs:
    """The rows of all segments that follow patterns.

    Args:
        rows: first row, number of rows, block of queries and kind of each gang.
        kinds: patterns of each kind, layer by layer.
    """

    rows: Int[Tensor, "gangs 4"]
    kinds: tuple[tuple[BlockPattern, ...], ...]


def gangs(segments: Sequence[Segment], layers: int) -> Gangs | None:
    """The gangs of a forward's rows, or `None` where a segment's attention is more than a pattern, or its blocks are of another size."""
    kinds: list[tuple[BlockPattern, ...]] = []
    found: list[np.ndarray] = []
    start = 0
    for segment in segments:
        if segment.attention is not None:
            patterns = _patterns(segment.attention, layers, segment.memory.length + segment.span)
            if patterns is None:
                return None
            offsets = np.arange(segment.rows) if segment.offsets is None else np.asarray(segment.offsets)
            blocks = (segment.memory.length + offsets) // patterns[0].tile
            starts = np.flatnonzero(np.diff(blocks, prepend=-1))
            lengths = np.diff(starts, append=segment.rows)
            firsts = np.concatenate([np.arange(low, low + rows, MOST_ROWS) for low, rows in zip(starts, lengths, strict=True)])
            counts = np.diff(firsts, append=segment.rows)
            found.append(np.stack([start + firsts, counts, blocks[firsts], np.full_like(firsts, len(kinds))], 1))
            kinds.append(patterns)
        start += segment.rows
    rows = np.concatenate(found) if found else np.empty((0, 4), dtype=np.int64)
    return Gangs(torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)), tuple(kinds))


def _patterns(attention: SegmentAttention, layers: int, length: int) -> tuple[BlockPattern, ...] | None:
    found = []
    for layer in range(layers):
        pattern = attention.pattern(layer, length)
        if pattern is None or pattern.tile % UNIT:
            return None
        found.append(pattern)
    return tuple(found)

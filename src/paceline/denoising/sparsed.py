"""SparseD: full attention in the first steps, then for each layer and head the blocks of keys that mattered there, chosen once.

All positions are fed in all steps, unless a cache is asked for as well; attention alone gets cheaper.

Source: SparseD (arXiv 2509.24014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.attention.attend import attend_one
from paceline.attention.plan import Reach
from paceline.attention.sparse import block_sparse
from paceline.attention.sparse_pattern import ROUNDING, BlockPattern, Select, choose_pattern
from paceline.core.batch import MemoryView, SegmentAttention
from paceline.denoising.canvas import Canvas
from paceline.denoising.policies import ForwardPolicy, Look
from paceline.denoising.schedule import Schedule

LONG = 4096  # positions from which on the paper's settings for long contexts are taken
SHORT_TILE, LONG_TILE = 32, 128
SHORT_KEEP, LONG_KEEP = 0.5, 0.3
SHARED = 0  # place in `Canvas.patterns` of what all memories follow
Heads = Literal["query", "kv"]
Guided = Literal["own", "shared"]


@dataclass(slots=True, eq=False)
class Patterns:
    """What the rows of one memory of a canvas see, layer by layer, for the rest of the answer.

    Args:
        prompt: length of the prompt.
        tile, keep, select, shared: see `choose_pattern`.
        owner: identity of the memory whose rows choose.
        layers: filled by one forward.
    """

    prompt: int
    tile: int
    keep: float
    select: Select
    shared: bool = False
    owner: int = 0
    layers: dict[int, BlockPattern] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Positions they were chosen for; 0 before."""
        return next(iter(self.layers.values())).length if self.layers else 0

    @property
    def density(self) -> float:
        """Share of block pairs that are read, over all layers."""
        return sum(pattern.density for pattern in self.layers.values()) / max(1, len(self.layers))


@dataclass(frozen=True, slots=True)
class Choosing:
    """Dense attention that chooses patterns on the way."""

    patterns: Patterns

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "rows heads head_dim"],
        keys: Float[Tensor, "keys kv_heads head_dim"],
        values: Float[Tensor, "keys kv_heads head_dim"],
        scale: float,
    ) -> Float[Tensor, "rows heads head_dim"]:
        """Of all positions of the canvas."""
        own = self.patterns
        chosen = choose_pattern(query, keys, own.prompt, tile=own.tile, keep=own.keep, scale=scale, select=own.select, shared=own.shared)
        own.layers[layer] = chosen
        return dense(query, keys, values, scale)

    def pattern(self, layer: int, length: int) -> None:
        """None yet."""


@dataclass(frozen=True, slots=True)
class Following:
    """Attention to what the patterns keep.

    Args:
        patterns: of the canvas.
        positions: of the rows; `None` where all are fed.
    """

    patterns: Patterns
    positions: Sequence[int] | None = None

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "rows heads head_dim"],
        keys: Float[Tensor, "keys kv_heads head_dim"],
        values: Float[Tensor, "keys kv_heads head_dim"],
        scale: float,
    ) -> Float[Tensor, "rows heads head_dim"]:
        """Every row by its own block of queries; positions that are not fed stand empty among them."""
        pattern = self.pattern(layer, len(keys))
        if self.positions is None:
            return block_sparse(query, keys, values, pattern, scale)
        where = torch.as_tensor(self.positions, device=query.device)
        wide = query.new_zeros(len(keys), *query.shape[1:]).index_copy_(0, where, query)
        return block_sparse(wide, keys, values, pattern, scale)[where]

    def pattern(self, layer: int, length: int) -> BlockPattern:
        """Of a canvas that may have become shorter."""
        layers = self.patterns.layers
        layers[layer] = layers[layer].cut(length)
        return layers[layer]


@dataclass(frozen=True, slots=True)
class Sparse:
    """A forward policy whose rows see less, once an answer's first steps are over.

    Args:
        inner: which rows are computed. Where it leaves some out, the first forward that feeds all of them chooses, from the step on that
            would.
        tile: positions per block of a pattern; 0 takes 32, or 128 for canvases of 4,096 and more.
        keep: share of blocks that are read; 0 takes 0.5, or 0.3 for those.
        skip: share of an answer's steps before the one that chooses; they attend to everything, and so does that one. Where a rule plans no
            number of steps, as many as there are tokens to decide are assumed.
        full: number of steps that attend to everything, the one that chooses included; 0 leaves it to `skip`.
        select: see `choose_pattern`; `reference` also makes one more step full, as released code does.
        schedule: of the commit rule, if it has one.
        heads: patterns of every query head, or one for all that share keys and values (`kv`).
        guided: with guidance, the canvas without the prompt has patterns of its own, or those of the other one (`shared`).
    """

    inner: ForwardPolicy
    tile: int = 0
    keep: float = 0.0
    skip: float = 0.2
    full: int = 0
    select: Select = "isolated"
    schedule: Schedule | None = None
    heads: Heads = "query"
    guided: Guided = "own"

    @property
    def anew(self) -> bool:
        """As the policy whose rows these are."""
        return self.inner.anew

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        look = self.inner.look(canvas, view, room)
        positions = None if len(look.positions) == canvas.length else look.positions
        return replace(look, segment=replace(look.segment, attention=self.attention(canvas, view, positions)))

    def attention(self, canvas: Canvas, view: MemoryView, positions: Sequence[int] | None = None) -> SegmentAttention | None:
        """What the next forward's rows, all or at these positions, attend with; the usual attention in the first steps."""
        if canvas.steps < self.chooses(canvas):
            return None
        place = id(view) if self.guided == "own" else SHARED
        known: Patterns | None = canvas.patterns.get(place)
        if known is not None and known.length >= canvas.length:
            return Following(known, positions)
        if positions is not None or (known is not None and known.owner != id(view)):
            return None  # a later forward chooses, or in this one the canvas with the prompt
        long = canvas.length >= LONG
        tile = self.tile or (LONG_TILE if long else SHORT_TILE)
        keep = self.keep or (LONG_KEEP if long else SHORT_KEEP)
        fresh = Patterns(canvas.prompt, tile, keep, self.select, self.heads == "kv", id(view))
        canvas.patterns[place] = fresh
        return Choosing(fresh)

    def chooses(self, canvas: Canvas) -> int:
        """Number of the step that chooses, from 0; beyond the last one where attention stays full."""
        if self.full:
            return self.full - 1
        planned = canvas.length - canvas.prompt if self.schedule is None else self.schedule.planned(canvas)
        return floor(planned * self.skip + ROUNDING) + (self.select == "reference")


def dense(query: Float[Tensor, "rows heads head_dim"], keys: Tensor, values: Tensor, scale: float) -> Float[Tensor, "rows heads head_dim"]:
    """Attention to everything."""
    reach = Reach(slice(0, len(query)), slice(0, len(keys)), len(keys), causal=False, mask=None)
    return attend_one(query, keys, values, reach, None, scale, None)

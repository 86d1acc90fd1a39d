"""Positions without rotation: absolute ones added to embeddings, and biases of attention scores by distance."""

from __future__ import annotations

from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from paceline.attention.plan import AttentionPlan, key_positions
from paceline.models.config import PositionSpec, RelativeSpec

SINE_BASE = 10_000.0


class LearnedPositions(nn.Module):
    """A table of vectors, one per position."""

    def __init__(self, spec: PositionSpec, width: int) -> None:
        super().__init__()
        self.offset = spec.offset
        self.weight = nn.Parameter(torch.empty(spec.rows, width), requires_grad=False)

    def forward(self, positions: Int[Tensor, " rows"], dtype: torch.dtype) -> Float[Tensor, "rows width"]:
        return self.weight[positions + self.offset]


class SinusoidalPositions(nn.Module):
    """Sines, then cosines, of geometrically falling frequencies (Vaswani et al. 2017, sec. 3.5). Nothing is stored."""

    def __init__(self, spec: PositionSpec, width: int) -> None:
        super().__init__()
        self.width, self.offset = width, spec.offset

    def forward(self, positions: Int[Tensor, " rows"], dtype: torch.dtype) -> Float[Tensor, "rows width"]:
        sines, cosines = -(-self.width // 2), self.width // 2
        rate = SINE_BASE ** (-2.0 * torch.arange(sines, dtype=torch.float64, device=positions.device) / self.width)
        angle = (positions + self.offset).to(torch.float64)[:, None] * rate
        table = torch.cat((angle.sin(), angle[:, :cosines].cos()), -1)
        return table.to(torch.float32).to(dtype)  # float32 first: released checkpoints were trained on a table of that type


def make_positions(spec: PositionSpec | None, width: int) -> LearnedPositions | SinusoidalPositions | None:
    """What adds absolute positions, if anything does."""
    if spec is None:
        return None
    return LearnedPositions(spec, width) if spec.kind == "learned" else SinusoidalPositions(spec, width)


class RelativeBias(nn.Module):
    """Score biases by bucketed distance, one column per head (Raffel et al. 2020, sec. 2.1)."""

    def __init__(self, spec: RelativeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.buckets, spec.heads), requires_grad=False)
        self._buckets: Int[Tensor, " distances"] | None = None

    def forward(self, plan: AttentionPlan) -> list[Float[Tensor, "heads segment_rows keys"]]:
        """Per segment, what every layer adds to its scores: the bias, and `-inf` where a row does not see a key."""
        furthest = self.spec.longest
        by_distance = self.weight[self._table()].t()  # (heads, distances from -furthest to furthest)
        found = []
        for segment, reach in zip(plan.segments, plan.reaches(None), strict=True):
            positions = plan.positions[reach.rows]
            distance = key_positions(segment, positions, reach.length) - torch.tensor(list(positions))[:, None]
            bias = by_distance[:, (distance.clamp_(-furthest, furthest) + furthest).to(self.weight.device)]
            if reach.causal:
                hidden = torch.ones(bias.shape[1:], dtype=torch.bool, device=bias.device).triu(1)
                bias = bias.masked_fill(hidden, float("-inf"))
            elif reach.mask is not None:
                bias = bias + reach.mask
            found.append(bias)
        return found

    def _table(self) -> Int[Tensor, " distances"]:
        """Bucket of every distance (key minus query) from `-longest` to `longest`; everything further shares the bucket of the ends."""
        if self._buckets is None or self._buckets.device != self.weight.device:
            distance = torch.arange(-self.spec.longest, self.spec.longest + 1)
            self._buckets = bucket(distance, self.spec).to(self.weight.device)
        return self._buckets


def bucket(distance: Int[Tensor, "*any"], spec: RelativeSpec) -> Int[Tensor, "*any"]:
    """Row of the bias table for a distance: small ones have one each, larger ones share logarithmic ranges.

    Args:
        distance: position of the key minus position of the query.
        spec: of the table.
    """
    buckets, base = spec.buckets, torch.zeros_like(distance)
    if spec.both_sides:
        buckets //= 2
        base = (distance > 0).to(distance.dtype) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    single = buckets // 2
    # float32 throughout, as the models were trained: some range borders lie exactly on a power of two
    ranged = torch.log(distance.to(torch.float32) / single) / log(spec.longest / single) * (buckets - single)
    ranged = (single + ranged.clamp(min=0.0).to(distance.dtype)).clamp(max=buckets - 1)
    return base + torch.where(distance < single, distance, ranged)

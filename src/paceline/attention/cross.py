"""Attention over an encoded source: every row sees all of its own sequence's source, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.attention.attend import attend_one
from paceline.attention.plan import Reach
from paceline.core.batch import CrossView, Segment


@dataclass(frozen=True, slots=True)
class CrossPlan:
    """Whose source each row reads.

    Args:
        views: keys and values of each segment's source.
        rows: rows of each segment.
    """

    views: Sequence[CrossView]
    rows: Sequence[slice]

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> CrossPlan:
        """The plan of a forward.

        Raises:
            ValueError: if a segment has no source: its sequence was not admitted as one of an encoder-decoder.
        """
        views, rows, start = [], [], 0
        for at, segment in enumerate(segments):
            if segment.cross is None:
                raise ValueError(f"segment {at} of a forward through an encoder-decoder has no source; encode one and attach it")
            views.append(segment.cross)
            rows.append(slice(start, start + segment.rows))
            start += segment.rows
        return cls(views, rows)


def attend_source(
    query: Float[Tensor, "rows heads head_dim"], plan: CrossPlan, layer: int, scale: float
) -> Float[Tensor, "rows heads head_dim"]:
    """Attention of every row over its source.

    Args:
        query: of this layer.
        plan: whose source is read.
        layer: index of the layer, whose keys and values are read.
        scale: multiplier of scores.
    """
    out = torch.empty_like(query)
    for view, rows in zip(plan.views, plan.rows, strict=True):
        keys, values = view.keys[layer], view.values[layer]
        reach = Reach(rows, slice(0, len(keys)), len(keys), causal=False, mask=None)
        part = attend_one(query[rows], keys, values, reach, None, scale, None)
        if len(plan.rows) == 1:
            return part
        out[rows] = part
    return out

"""Layers for few rows on a CPU: the arithmetic of `layers.py`, with everything between two matrix products in one kernel call.

A forward of a few rows through a small model spends most of its time calling operators. Here a layer makes eight calls instead of about
forty. Layers that need more than this covers (norms behind the mixer, experts, taps inside a layer) run in `layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.attention.paths import Paths, paths
from paceline.kernels.fused import Fused
from paceline.models.config import DecoderConfig
from paceline.models.layers import Attention, FeedForward, RMSNorm, Step

MOST_VISITS = 1 << 21  # query-key products per layer, over heads and dimensions, beyond which several threads are worth their start


def fusable(config: DecoderConfig) -> bool:
    """Whether every layer of this decoder is covered."""
    return all(
        not layer.post_norms
        and not layer.mixer.qk_norm
        and layer.mixer.rope is not None
        and layer.feed_forward.experts == 0
        and layer.feed_forward.activation == "silu"
        for layer in config.layers
    )


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """What a fused layer needs, gathered once after packing so that a forward looks nothing up."""

    mixer_gain: Float[Tensor, " width"]
    mixer_floor: float
    qkv: Product
    o: Product
    feed_gain: Float[Tensor, " width"]
    feed_floor: float
    gate_up: Product
    down: Product
    heads: int
    inner: int  # heads times their width
    window: int | None
    scale: float
    softcap: float

    @classmethod
    def of(cls, mixer_norm: RMSNorm, mixer: Attention, feed_norm: RMSNorm, feed: FeedForward) -> FusedLayer:
        """From the packed parts of a layer."""
        assert mixer.qkv is not None
        assert feed.gate_up is not None
        assert mixer_norm.packed is not None
        assert feed_norm.packed is not None
        spec = mixer.spec
        return cls(
            mixer_norm.packed, mixer_norm.floor_square, mixer.qkv.kernel, mixer.o.kernel,
            feed_norm.packed, feed_norm.floor_square, feed.gate_up.kernel, feed.down.kernel,
            spec.heads, spec.heads * spec.head_dim, spec.window, spec.scale, spec.softcap or 0.0,
        )  # fmt: skip


class FewRows:
    """The fused form of one step.

    Args:
        kernels: for the decoder's type.
        step: prepared rows.
        views: paths of the rows for each window the layers have.
    """

    def __init__(self, kernels: Fused, step: Step, views: dict[int | None, Paths]) -> None:
        self.kernels, self.step, self.views = kernels, step, views
        self.delta: Tensor | None = None  # output of the last half layer, not yet in the residual stream
        write = step.plan.write
        self.slots = torch.arange(write.start, write.stop) if isinstance(write, slice) else write

    @classmethod
    def of(cls, kernels: Fused, step: Step, layers: Sequence[FusedLayer]) -> FewRows | None:
        """The fused form, or `None` where the usual layers are faster or the only ones that can do it."""
        wanted, plan = step.wanted, step.plan
        if wanted.queries or wanted.keys or wanted.keys_values or wanted.lse:
            return None
        views = {}
        for window in {layer.window for layer in layers}:
            seen = paths(plan.segments, plan.positions, window)
            if seen is None or (plan.exact is None and seen.visits * layers[0].inner > MOST_VISITS):
                return None
            views[window] = seen
        return cls(kernels, step, views)

    def settle(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """The residual stream with everything in it."""
        if self.delta is not None:
            hidden.add_(self.delta)
            self.delta = None
        return hidden

    def layer(self, hidden: Float[Tensor, "rows width"], index: int, layer: FusedLayer) -> None:
        """One layer; `hidden` is updated in place, its last summand stays in `delta`."""
        step, kernels, seen = self.step, self.kernels, self.views[layer.window]
        rotation, keys, values = step.rotations[index], step.keys[index], step.values[index]
        assert rotation is not None
        qkv = layer.qkv(kernels.add_norm(hidden, self.delta, layer.mixer_gain, layer.mixer_floor))
        kernels.rotate_store(qkv, rotation.cos, rotation.sin, keys, values, self.slots, layer.heads)
        mixed = layer.o(kernels.attend(qkv, keys, values, seen.first, seen.runs, seen.work, layer.heads, layer.scale, layer.softcap))
        both = layer.gate_up(kernels.add_norm(hidden, mixed, layer.feed_gain, layer.feed_floor))
        self.delta = layer.down(kernels.silu_gate(both))

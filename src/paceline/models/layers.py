"""The parts of a decoder layer: norm, grouped-query attention, feed-forward. Rows are flat; sequences exist only in the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from paceline.attention.attend import attend, log_sum_exp
from paceline.attention.cross import CrossPlan
from paceline.attention.plan import AttentionPlan
from paceline.core.batch import TapRequest, Taps
from paceline.kernels.fused import Fused, fused
from paceline.models.config import Activation, AttentionSpec, FeedForwardSpec
from paceline.models.linear import Linear, fuse
from paceline.models.rope import RotaryTable, Rotation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(slots=True)
class Step:
    """What one range of layers needs besides hidden states: where rows read and write, how each layer rotates, what is tapped.

    `positions` are those of the rows, all of them reserved in the `tables`; `table_of` says which table each layer rotates by. `bias` is
    added to the scores of self-attention, segment by segment; `cross` says whose source each row reads.
    """

    plan: AttentionPlan
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    positions: Int[Tensor, " rows"]
    tables: Sequence[RotaryTable]
    table_of: Sequence[int | None]
    wanted: TapRequest
    taps: Taps = field(default_factory=Taps)
    bias: Sequence[Float[Tensor, "heads segment_rows keys"]] | None = None
    cross: CrossPlan | None = None
    _rotations: dict[int, Rotation] = field(init=False, default_factory=dict)

    def rotation(self, layer: int) -> Rotation | None:
        """How a layer rotates, if it does."""
        table = self.table_of[layer]
        if table is None:
            return None
        if table not in self._rotations:
            self._rotations[table] = self.tables[table].rows(self.positions)
        return self._rotations[table]


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019); `offset` is added to the stored weight (Gemma stores `weight - 1`).

    Computed as `x / hypot(|x|, sqrt(width * eps)) * (weight * sqrt(width))`: the same value in half the operations of
    `F.rms_norm`, which is what counts for narrow models.
    """

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.offset, self.root, self.floor = offset, sqrt(width), torch.tensor(sqrt(width * eps), dtype=torch.float64, device="cpu")
        self.packed: Tensor | None = None
        self.floor_square = 0.0
        self.kernels: Fused | None = None

    def pack(self) -> None:
        """Compute the effective gain once; later changes of the weight are not seen."""
        self.packed = self.gain()
        self.floor = self.floor.to(self.packed)
        self.floor_square = float(self.floor) ** 2
        self.kernels = fused(self.weight.dtype, self.weight.device)

    def gain(self) -> Float[Tensor, " width"]:
        """What the direction of a row is multiplied by, in at least float32."""
        weight = self.weight.detach() if not torch.is_grad_enabled() else self.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.to(wide) + self.offset) * self.root

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        gain = self.gain() if self.packed is None else self.packed
        if self.kernels is not None:
            return self.kernels.normalize(x, gain, self.floor_square)
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=gain.dtype)
        out = x / torch.hypot(length, self.floor.to(gain.dtype) if self.packed is None else self.floor) * gain
        return out if out.dtype is x.dtype else out.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention of one layer."""

    def __init__(self, spec: AttentionSpec, width: int, eps: float, norm_offset: float) -> None:
        super().__init__()
        self.spec = spec
        self.q = Linear(width, spec.heads * spec.head_dim, spec.qkv_bias)
        self.k = Linear(width, spec.kv_heads * spec.head_dim, spec.qkv_bias)
        self.v = Linear(width, spec.kv_heads * spec.head_dim, spec.qkv_bias)
        self.o = Linear(spec.heads * spec.head_dim, width, spec.out_bias)
        if spec.qk_norm:
            self.q_norm = RMSNorm(spec.head_dim, eps, norm_offset)
            self.k_norm = RMSNorm(spec.head_dim, eps, norm_offset)
        self.qkv: Linear | None = None

    def pack(self) -> None:
        """Fuse the three input projections and pack all weights for this device."""
        self.qkv = fuse([self.q, self.k, self.v])
        del self.q, self.k, self.v
        self.qkv.pack()
        self.o.pack()

    def project(self, x: Float[Tensor, "rows width"]) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side (rows, heads + kv_heads, head_dim), and values (rows, kv_heads, head_dim), not rotated."""
        spec = self.spec
        if self.qkv is not None:
            heads = self.qkv.kernel(x).view(-1, spec.heads + 2 * spec.kv_heads, spec.head_dim)
            both, value = heads[:, : spec.heads + spec.kv_heads], heads[:, spec.heads + spec.kv_heads :]
        else:
            both = torch.cat((self.q.kernel(x), self.k.kernel(x)), -1).view(-1, spec.heads + spec.kv_heads, spec.head_dim)
            value = self.v.kernel(x).view(-1, spec.kv_heads, spec.head_dim)
        if spec.qk_norm:
            both = torch.cat((self.q_norm(both[:, : spec.heads]), self.k_norm(both[:, spec.heads :])), 1)
        return both, value

    def forward(self, x: Float[Tensor, "rows width"], step: Step, layer: int) -> Float[Tensor, "rows width"]:
        spec, plan = self.spec, step.plan
        both, value = self.project(x)
        plain = both
        rotation = step.rotation(layer)
        if rotation is not None:
            both = rotation(both)
        query, key = both[:, : spec.heads], both[:, spec.heads :]
        keys, values = step.keys[layer], step.values[layer]
        real = len(plan.positions)  # the rest is padding of the bit-exact mode
        if real != len(x):
            keys[plan.write], values[plan.write] = key[:real], value[:real]
        else:
            keys[plan.write], values[plan.write] = key, value
        out = attend(query, keys, values, plan, scale=spec.scale, window=spec.window, softcap=spec.softcap, bias=step.bias, layer=layer)
        self._tap(step, layer, plain, query, key, value)
        return self.o.kernel(out.reshape(len(x), -1))

    def _tap(self, step: Step, layer: int, plain: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
        wanted, taps, spec = step.wanted, step.taps, self.spec
        real = slice(len(step.plan.positions))  # the rest is padding of the bit-exact mode
        if layer in wanted.queries:
            taps.queries[layer] = query[real]
        if layer in wanted.keys:
            taps.keys[layer] = plain[real, spec.heads :]
        if layer in wanted.keys_values:
            taps.keys_values[layer] = (key[real], value[real])
        if layer in wanted.lse:
            keys = step.keys[layer]
            taps.lse[layer] = log_sum_exp(query[real], keys, step.plan, scale=spec.scale, window=spec.window, softcap=spec.softcap)


class FeedForward(nn.Module):
    """Gated feed-forward: `down(act(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, spec: FeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = Linear(width, spec.width)
        self.up = Linear(width, spec.width)
        self.down = Linear(spec.width, width)
        self.gate_up: Linear | None = None

    def pack(self) -> None:
        """Fuse gate and up, and pack all weights for this device."""
        self.gate_up = fuse([self.gate, self.up])
        del self.gate, self.up
        self.gate_up.pack()
        self.down.pack()

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        if self.gate_up is None:
            return self.down.kernel(self.activation(self.gate.kernel(x)) * self.up.kernel(x))
        gate, up = self.gate_up.kernel(x).chunk(2, -1)
        return self.down.kernel(self.activation(gate).mul_(up))


class PlainFeedForward(nn.Module):
    """Feed-forward without a gate: `down(act(inner(x)))` (Vaswani et al. 2017, sec. 3.3)."""

    def __init__(self, spec: FeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.activation = ACTIVATIONS[spec.activation]
        self.inner = Linear(width, spec.width, spec.bias)
        self.down = Linear(spec.width, width, spec.bias)

    def pack(self) -> None:
        """Pack all weights for this device."""
        self.inner.pack()
        self.down.pack()

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return self.down.kernel(self.activation(self.inner.kernel(x)))

"""Cross-attention: the mixer that reads an encoded source. Keys and values of the source are computed once, by `remember`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from paceline.attention.cross import attend_source
from paceline.models.config import AttentionSpec
from paceline.models.layers import Step
from paceline.models.linear import Linear, fuse


class CrossAttention(nn.Module):
    """Grouped-query attention of decoder rows over encoder rows.

    Args:
        spec: shape and scale; it has neither rotation nor window.
        width: of the decoder.
        source_width: of the encoder.
    """

    def __init__(self, spec: AttentionSpec, width: int, source_width: int) -> None:
        super().__init__()
        self.spec = spec
        self.q = Linear(width, spec.heads * spec.head_dim, spec.qkv_bias)
        self.k = Linear(source_width, spec.kv_heads * spec.head_dim, spec.qkv_bias)
        self.v = Linear(source_width, spec.kv_heads * spec.head_dim, spec.qkv_bias)
        self.o = Linear(spec.heads * spec.head_dim, width, spec.out_bias)
        self.kv: Linear | None = None

    def pack(self) -> None:
        """Fuse the projections of the source, and pack all weights for this device."""
        self.kv = fuse([self.k, self.v])
        del self.k, self.v
        for linear in (self.q, self.kv, self.o):
            linear.pack()

    def remember(self, source: Float[Tensor, "source source_width"]) -> tuple[Tensor, Tensor]:
        """Keys and values of encoded rows, each (source, kv_heads, head_dim)."""
        if self.kv is not None:
            key, value = self.kv.kernel(source).chunk(2, -1)
        else:
            key, value = self.k.kernel(source), self.v.kernel(source)
        shape = (-1, self.spec.kv_heads, self.spec.head_dim)
        return key.reshape(shape), value.reshape(shape)

    def forward(self, x: Float[Tensor, "rows width"], step: Step, layer: int) -> Float[Tensor, "rows width"]:
        assert step.cross is not None
        query = self.q.kernel(x).view(len(x), self.spec.heads, self.spec.head_dim)
        return self.o.kernel(attend_source(query, step.cross, layer, self.spec.scale).reshape(len(x), -1))

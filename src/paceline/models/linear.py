"""Linear layers, and the one place that knows how weights are laid out for a device.

On a CPU with a C compiler, weights are packed for our own kernels (`kernels/product.c`): fastest for few rows, and a row's bits depend on
nothing but the row. Without a compiler three layouts compete, and which is fastest depends on type and size alone
(`benchmarks/linear_kernels.py`):

- half precision: reordered once for oneDNN, whose product then runs at about the speed memory delivers the weight. The operators are
  internal to torch (inductor emits them under freezing), so they are tried once and `F.linear` is the fallback;
- large float32: the same;
- small float32: stored transposed. Calling oneDNN costs more than the product, and plain BLAS reads `x @ W` faster than `x @ W.T`.

In these three a row's bits do not depend on how many rows stand beside it, from two rows up.
"""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from paceline.kernels.fused import Panels, fused, packable

REORDER_FP32_ELEMENTS = 1 << 21  # float32 weights from this size up are reordered for oneDNN
PACK_ROWS = 8  # row count the reordered layout is tuned for: between plain decoding and a full draft


class Linear(nn.Module):
    """`x @ weight.T + bias`, with a replaceable kernel.

    `kernel` is called directly by the layers (no module hooks): it is `F.linear` until `pack` finds something faster.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None)
        self.shape = (outputs, inputs)
        self.packed_bytes = 0
        self.panels: Panels | None = None

    @classmethod
    def over(cls, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A layer on existing tensors."""
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], bias is not None)
        layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def kernel(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """The product; shadowed by a packed kernel after `pack`."""
        return F.linear(x, self.weight, self.bias)

    def forward(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        return self.kernel(x)

    def pack(self, keep: bool = False) -> None:
        """Lay the weight out for this device where that pays.

        Args:
            keep: keep the original too (an embedding table shared with the head).
        """
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        kernels = fused(weight.dtype, weight.device)
        if kernels is not None and packable(weight.dtype, weight.device, weight.shape[1]):
            self.panels = Panels.of(weight, bias)
            self.__dict__["kernel"] = partial(kernels.product, panels=self.panels)
        elif not can_pack(weight.dtype, weight.device):
            self.__dict__["kernel"] = partial(F.linear, weight=weight, bias=bias)
            return
        elif weight.dtype is torch.float32 and weight.numel() < REORDER_FP32_ELEMENTS:
            self.__dict__["kernel"] = partial(_transposed, weight=weight.t().contiguous(), bias=bias)
        else:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACK_ROWS)
            self.__dict__["kernel"] = partial(_reordered, weight=packed, bias=bias)
        self.packed_bytes = weight.numel() * weight.element_size() if self.panels is None else self.panels.bytes
        if not keep:
            self.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _reordered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]  # torch.ops has no types


@cache
def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this build of torch can multiply by a reordered weight of this kind; tried once on a tiny one."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.eye(32, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        return bool(torch.equal(_reordered(weight, packed, None), weight))
    except (AttributeError, RuntimeError):
        return False


def fuse(parts: list[Linear]) -> Linear:
    """One linear layer whose outputs are those of `parts`, one after the other; their weights are released."""
    weight = torch.cat([part.weight.detach() for part in parts])
    biases = [part.weight.new_zeros(part.shape[0]) if part.bias is None else part.bias.detach() for part in parts]
    biased = any(part.bias is not None for part in parts)
    for part in parts:
        part.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return Linear.over(weight, torch.cat(biases) if biased else None)

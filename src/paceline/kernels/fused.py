"""The compiled kernels as functions on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paceline.kernels.build import library

POINTER, INTEGER, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
PANEL = 32  # outputs per panel of a packed weight, as in product.c
LANES = 16  # a head's width is a multiple of this, as in attend.c
WIDEST_HEAD = 512  # LANES times MOST_CHUNKS of attend.h


class CLinear(ctypes.Structure):
    """`linear` of product.h."""

    _fields_ = (("weight", POINTER), ("bias", POINTER), ("inputs", INTEGER), ("outputs", INTEGER))


class CLayer(ctypes.Structure):
    """`layer` of decode.h."""

    _fields_ = (
        *((name, CLinear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, POINTER) for name in ("mixer_gain", "feed_gain", "query_gain", "key_gain", "keys", "values")),
        *((name, INTEGER) for name in ("path", "turn", "heads", "kv_heads", "dim", "slot_stride")),
        *((name, REAL) for name in ("mixer_floor", "feed_floor", "head_floor", "scale", "softcap")),
    )


class CPath(ctypes.Structure):
    """`path` of decode.h."""

    _fields_ = (("first", POINTER), ("runs", POINTER))


class CTurn(ctypes.Structure):
    """`turn` of decode.h."""

    _fields_ = (("cosine", POINTER), ("sine", POINTER), ("dims", INTEGER))


class CPattern(ctypes.Structure):
    """`pattern` of decode.h."""

    _fields_ = (("index", POINTER), ("counts", POINTER), ("blocks", INTEGER), ("most", INTEGER), ("tile", INTEGER))


class CEnds(ctypes.Structure):
    """`ends` of decode.h."""

    _fields_ = (("table", POINTER), ("gain", POINTER), ("head", CLinear), ("floor", REAL))


class CStep(ctypes.Structure):
    """`step` of decode.h."""

    _fields_ = (
        *((name, POINTER) for name in ("hidden", "work", "slots", "positions", "paths", "turns", "gangs", "patterns")),
        *((name, INTEGER) for name in ("rows", "real", "width", "longest", "ganged", "kinds")),
        *((name, POINTER) for name in ("ends", "ids", "wanted")),
        ("asked", INTEGER),
        ("logits", POINTER),
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight as the kernels read it.

    Args:
        weight: panels of 32 outputs; inside a panel the inputs in order, in bf16 two at a time.
        bias: in float32.
        shape: outputs and inputs.
        struct: pointers to both.
    """

    weight: Tensor
    bias: Float[Tensor, " outputs"] | None
    shape: tuple[int, int]
    struct: CLinear

    @classmethod
    def of(cls, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Panels:
        """Pack a weight; outputs are filled up to whole panels with zeros."""
        outputs, inputs = weight.shape
        together = _together(weight.dtype)
        panels = F.pad(weight, (0, 0, 0, -outputs % PANEL)).view(-1, PANEL, inputs // together, together)
        packed = panels.transpose(1, 2).contiguous()
        wide = None if bias is None else bias.float().contiguous()
        struct = CLinear(packed.data_ptr(), None if wide is None else wide.data_ptr(), inputs, outputs)
        return cls(packed, wide, (outputs, inputs), struct)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self.weight.numel() * self.weight.element_size()


class Fused:
    """Kernels of one element type. All tensors are on the CPU, of that type and contiguous; nothing is checked here."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        for name, signature in {
            "run": [POINTER, INTEGER, INTEGER, POINTER, INTEGER],
            "normalize": [POINTER] * 3 + [INTEGER] * 2 + [REAL],
            "product": [POINTER] * 3 + [INTEGER] * 2,
        }.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = signature, None
        loaded.native.restype = loaded.gangs.restype = INTEGER
        loaded.gangs.argtypes = [INTEGER]
        self.native = bool(loaded.native())  # whether the processor multiplies this type as it is stored
        self.gangs: Callable[[int], int] = loaded.gangs  # whether rows of heads this wide may follow patterns
        self._run, self._normalize, self._product = loaded.run, loaded.normalize, loaded.product

    def product(self, x: Float[Tensor, "*rows inputs"], panels: Panels) -> Float[Tensor, "*rows outputs"]:
        """`x @ weight.T + bias`. A row's bits do not depend on the other rows, nor on the number of threads."""
        x = x.contiguous()
        outputs, inputs = panels.shape
        out = x.new_empty(*x.shape[:-1], outputs)
        self._product(ctypes.byref(panels.struct), x.data_ptr(), out.data_ptr(), x.numel() // inputs, torch.get_num_threads())
        return out

    def normalize(self, x: Float[Tensor, "*rows width"], gain: Float[Tensor, " width"], floor: float) -> Float[Tensor, "*rows width"]:
        """RMS norm: `x / sqrt(|x|^2 + floor) * gain`. A row's bits do not depend on the other rows."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self._normalize(x.data_ptr(), gain.data_ptr(), out.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], floor)
        return out

    def run(self, layers: ctypes.Array[CLayer], chosen: range, step: CStep) -> None:
        """Run a range of layers in place on `step.hidden`."""
        self._run(layers, chosen.start, chosen.stop, ctypes.byref(step), torch.get_num_threads())


def packable(dtype: torch.dtype, device: torch.device, inputs: int) -> bool:
    """Whether a weight of this kind can be packed for the kernels."""
    return fused(dtype, device) is not None and inputs % _together(dtype) == 0


@cache
def fused(dtype: torch.dtype, device: torch.device) -> Fused | None:
    """Kernels for this type, if this machine can have them."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    path = library("decode-bf16" if dtype is torch.bfloat16 else "decode-f32")
    return None if path is None else Fused(str(path))


def _together(dtype: torch.dtype) -> int:
    """Inputs that a kernel takes at once."""
    return 2 if dtype is torch.bfloat16 else 1

"""The compiled kernels as functions on tensors."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.kernels.build import library

POINTER, INTEGER, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES = {
    "add_norm": [POINTER] * 4 + [INTEGER] * 2 + [REAL],
    "silu_gate": [POINTER] * 2 + [INTEGER] * 2,
    "rotate_store": [POINTER] * 6 + [INTEGER] * 6,
    "attend": [POINTER] * 7 + [INTEGER] * 6 + [REAL] * 2,
}


class Fused:
    """Kernels of one element type. All tensors are on the CPU and contiguous unless a stride is named; nothing is checked here."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        for name, signature in SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = signature, None
        self._add_norm, self._silu_gate = loaded.add_norm, loaded.silu_gate
        self._rotate_store, self._attend = loaded.rotate_store, loaded.attend

    def add_norm(
        self, hidden: Float[Tensor, "rows width"], delta: Float[Tensor, "rows width"] | None, gain: Float[Tensor, " width"], floor: float
    ) -> Float[Tensor, "rows width"]:
        """Add `delta` to `hidden` in place, then return its RMS norm: `hidden / sqrt(|hidden|^2 + floor) * gain` (gain in float32)."""
        out = torch.empty_like(hidden)
        rows, width = hidden.shape
        added = None if delta is None else delta.data_ptr()
        self._add_norm(hidden.data_ptr(), added, gain.data_ptr(), out.data_ptr(), rows, width, floor)
        return out

    def silu_gate(self, both: Float[Tensor, "rows twice"]) -> Float[Tensor, "rows width"]:
        """`silu(gate) * up` of gate and up side by side."""
        rows, twice = both.shape
        out = both.new_empty(rows, twice // 2)
        self._silu_gate(both.data_ptr(), out.data_ptr(), rows, twice // 2)
        return out

    def rotate_store(
        self,
        qkv: Float[Tensor, "rows inner"],
        cos: Float[Tensor, "rows 1 dims"],
        sin: Float[Tensor, "rows 1 dims"],
        keys: Float[Tensor, "slots kv_heads head_dim"],
        values: Float[Tensor, "slots kv_heads head_dim"],
        slots: Int[Tensor, " real"],
        heads: int,
    ) -> None:
        """Rotate queries and keys in place and store keys and values of the first `real` rows in their slots."""
        kv_heads, dim = keys.shape[1:]
        self._rotate_store(
            qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), keys.data_ptr(), values.data_ptr(), slots.data_ptr(),
            slots.shape[0], heads, kv_heads, dim, cos.shape[-1], keys.stride(0),
        )  # fmt: skip

    def attend(
        self,
        qkv: Float[Tensor, "rows inner"],
        keys: Float[Tensor, "slots kv_heads head_dim"],
        values: Float[Tensor, "slots kv_heads head_dim"],
        first: Int[Tensor, " bounds"],
        runs: Int[Tensor, "runs 2"],
        work: Float[Tensor, " longest"],
        heads: int,
        scale: float,
        softcap: float,
    ) -> Float[Tensor, "rows inner"]:
        """Attention of each row over the slots of its runs, in their order; rows behind the last bound get zeros."""
        kv_heads, dim = keys.shape[1:]
        rows, real = qkv.shape[0], first.shape[0] - 1
        out = qkv.new_empty(rows, heads * dim) if rows == real else qkv.new_zeros(rows, heads * dim)
        self._attend(
            qkv.data_ptr(), keys.data_ptr(), values.data_ptr(), out.data_ptr(), first.data_ptr(), runs.data_ptr(), work.data_ptr(),
            real, heads, kv_heads, dim, qkv.stride(0), keys.stride(0), scale, softcap,
        )  # fmt: skip
        return out


@cache
def fused(dtype: torch.dtype, device: torch.device) -> Fused | None:
    """Kernels for this type, if this machine can have them."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    path = library(bf16=dtype is torch.bfloat16)
    return None if path is None else Fused(str(path))

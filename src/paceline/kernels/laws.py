"""The kernels of sampling as functions on tensors: laws from logits, the likeliest tokens of a law, draws."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.kernels.build import library

POINTER, INTEGER, REAL, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double


class Laws:
    """Kernels of `law.c`. All tensors are float32, on the CPU, with rows that lie one after the other; nothing is checked here."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        for name, signature in {
            "laws": [POINTER, POINTER, INTEGER, INTEGER, REAL, INTEGER, DOUBLE, REAL, INTEGER],
            "draw": [POINTER, INTEGER, DOUBLE],
            "likeliest": [POINTER, INTEGER, INTEGER, POINTER, POINTER],
        }.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = signature, INTEGER
        self._laws, self._draw, self._likeliest = loaded.laws, loaded.draw, loaded.likeliest

    def of(
        self, logits: Float[Tensor, "rows vocabulary"], temperature: float, top_k: int, top_p: float, min_p: float
    ) -> Float[Tensor, "rows vocabulary"]:
        """See `core.transform.target_distribution`; `temperature` is positive.

        Raises:
            MemoryError: if there is no room for three rows.
        """
        rows, width = logits.shape
        laws = torch.empty_like(logits)
        kept, threads = top_k if 0 < top_k < width else 0, torch.get_num_threads()
        if self._laws(logits.data_ptr(), laws.data_ptr(), rows, width, temperature, kept, top_p, min_p, threads):
            raise MemoryError(f"no room for {3 * width} numbers to work out a law")
        return laws

    def draw(self, laws: Float[Tensor, "rows vocabulary"], uniforms: Sequence[float]) -> list[int]:
        """One id per row; the width of the vocabulary where a row is no distribution."""
        start, width = laws.data_ptr(), laws.shape[-1]
        return [self._draw(start + 4 * width * row, width, number) for row, number in enumerate(uniforms)]

    def likeliest(self, law: Float[Tensor, " vocabulary"], count: int) -> tuple[list[int], list[float]]:
        """Ids and probabilities of the `count` likeliest tokens with any mass, largest first, of equal ones the lowest id."""
        ids, probs = (INTEGER * count)(), (REAL * count)()
        size = self._likeliest(law.data_ptr(), len(law), count, ids, probs)
        return ids[:size], probs[:size]


@cache
def kernels() -> Laws | None:
    """The kernels, if this machine can have them."""
    path = library("law")
    return None if path is None else Laws(str(path))

"""The kernels of sampling as functions on tensors: laws from logits, the likeliest tokens of a law, draws, shares."""

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
    """Kernels of `law.c`. Laws are float32, on the CPU, with rows that lie one after the other; nothing is checked here."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        for name, result, signature in (
            ("laws", INTEGER, [POINTER, POINTER, INTEGER, INTEGER, REAL, INTEGER, DOUBLE, REAL, INTEGER]),
            ("draw", INTEGER, [POINTER, INTEGER, DOUBLE]),
            ("draw_wide", INTEGER, [POINTER, INTEGER, DOUBLE]),
            ("refuse", None, [POINTER, INTEGER, POINTER, POINTER, INTEGER, INTEGER, POINTER]),
            ("share", DOUBLE, [POINTER, INTEGER, INTEGER]),
            ("likeliest", None, [POINTER, INTEGER, INTEGER, INTEGER, POINTER, POINTER, POINTER]),
        ):
            function = getattr(loaded, name)
            function.argtypes, function.restype = signature, result
        self._laws, self._draw, self._draw_wide = loaded.laws, loaded.draw, loaded.draw_wide
        self._refuse, self._share, self._likeliest = loaded.refuse, loaded.share, loaded.likeliest

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
        """One id per row, which may be float64 here; the width of the vocabulary where a row is no distribution."""
        start, width, wide = laws.data_ptr(), laws.shape[-1], laws.dtype == torch.float64
        call, row_bytes = (self._draw_wide, 8 * width) if wide else (self._draw, 4 * width)
        return [call(start + row_bytes * row, width, number) for row, number in enumerate(uniforms)]

    def refuse(
        self, law: Float[Tensor, " vocabulary"], ids: Sequence[int], probs: Sequence[float], drawn: int
    ) -> Float[Tensor, " vocabulary"]:
        """What is left of a law when a draw from a few tokens with these probabilities was refused: float64, of any mass."""
        size, left = len(ids), torch.empty(len(law), dtype=torch.float64)
        self._refuse(law.data_ptr(), len(law), (INTEGER * size)(*ids), (DOUBLE * size)(*probs), size, drawn, left.data_ptr())
        return left

    def share(self, law: Float[Tensor, " vocabulary"], token: int) -> float:
        """What part of the law's mass a token has."""
        share: float = self._share(law.data_ptr(), len(law), token)
        return share

    def likeliest(self, laws: Sequence[Float[Tensor, " vocabulary"]], count: int) -> list[tuple[list[int], list[float]]]:
        """Of each law, ids and probabilities of the `count` likeliest tokens with any mass, largest first, of equal ones the lowest id."""
        rows = len(laws)
        sizes, ids, probs = (INTEGER * rows)(), (INTEGER * (rows * count))(), (REAL * (rows * count))()
        starts = (POINTER * rows)(*[law.data_ptr() for law in laws])
        self._likeliest(starts, rows, len(laws[0]), count, sizes, ids, probs)
        return [(ids[at : at + size], probs[at : at + size]) for at, size in zip(range(0, rows * count, count), sizes, strict=True)]


@cache
def kernels() -> Laws | None:
    """The kernels, if this machine can have them."""
    path = library("law")
    return None if path is None else Laws(str(path))

"""Blocks of counter-based numbers: the same numbers as `rng.uniform`, many at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.core.rng import Purpose, key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stream(seed: int, position: int, purpose: Purpose) -> int:
    """Where the numbers of one seed, position and purpose start; arguments as for `rng.uniform`."""
    return key(seed, position, int(purpose))


def uniform_block(streams: Sequence[int], counters: Sequence[int], width: int) -> npt.NDArray[np.float64]:
    """Row i holds the numbers `counters[i]`, `counters[i] + 1`, .. of `streams[i]`: those that `rng.uniform` gives for these draws.

    Args:
        streams: from `stream`.
        counters: first draw of each row, at least 0.
        width: numbers per row.

    Returns:
        Array of shape (rows, width) in [0, 1), 53 random bits each.
    """
    draws = np.add.outer(np.asarray(counters, dtype=np.uint64), np.arange(width, dtype=np.uint64), dtype=np.uint64)
    value: npt.NDArray[np.uint64] = np.bitwise_xor(np.asarray(streams, dtype=np.uint64)[:, None], draws)
    value = value + _GOLDEN  # SplitMix64, as in `rng`; unsigned sums wrap around
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    value = (value ^ (value >> np.uint64(31))) >> np.uint64(11)
    return value.astype(np.float64) * 2.0**-53

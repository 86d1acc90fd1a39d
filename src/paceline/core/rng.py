"""Counter-based randomness: a number is a pure function of (seed, position, purpose, draw).

Because nothing is consumed from a stream, the batch a request runs in, its padding and the shape of its drafts cannot change a sample.
"""

from __future__ import annotations

from enum import IntEnum

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """Independent streams; two uses never share a number."""

    TARGET = 1  # the sample of an output position: plain decoding and sample-and-match use the same one
    DRAFT = 2
    ACCEPT = 3
    RESIDUAL = 4
    FILL = 5  # which token a masked position gets
    ORDER = 6  # which masked positions are decided first


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose output bits look independent."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key(seed: int, *words: int) -> int:
    """A 64-bit key derived from a seed and any number of words; order matters."""
    state = _mix(seed & _MASK)
    for word in words:
        state = _mix(state ^ (word & _MASK))
    return state


def uniform(seed: int, position: int, purpose: Purpose, draw: int = 0) -> float:
    """A number in [0, 1) with 53 random bits.

    Args:
        seed: of the request (and sample).
        position: absolute position, in the sequence, of the token being decided.
        purpose: which stream.
        draw: index among several numbers used at one position.
    """
    return (key(seed, position, int(purpose), draw) >> 11) * 2.0**-53


def uniforms(start: int, draws: range) -> list[float]:
    """Several numbers of one stream.

    Args:
        start: `key(seed, position, purpose)`; the numbers are those of `uniform`.
        draws: which ones.
    """
    return [(_mix(start ^ draw) >> 11) * 2.0**-53 for draw in draws]

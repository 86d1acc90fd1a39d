"""Rotary position embeddings: the frequencies of every released scaling rule, and a table of cosines and sines grown as needed.

Two rules depend on the length of the sequence: `dynamic` stretches the base beyond the trained context, `longrope` swaps its factors there.
`transformers` decides anew in every forward, so a sequence that grows past the boundary ends up with keys rotated by two different rules
and its logits depend on how it was cut into forwards. Here the length is fixed when the table is made (the longest context the decoder
serves): a position always rotates the same way, so incremental decoding, chunked prefill and a full forward agree. For a full forward of
`n` tokens, a table of length `n` gives the rotations of `transformers`, below and above the trained context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.errors import CheckpointError
from paceline.models.config import RopeSpec

Parameters = Mapping[str, float | tuple[float, ...]]
Frequencies = tuple[Float[Tensor, " half"], float]


def inverse_frequencies(spec: RopeSpec, length: int | None = None, dtype: torch.dtype = torch.float32) -> Frequencies:
    """Angle per position of each rotated pair of dimensions, in radians, and the factor on cosines and sines.

    Args:
        spec: kind and parameters of the rule.
        length: tokens of the longest sequence; `None` is the trained context. Matters for `dynamic` and `longrope` only.
        dtype: of the computation; checkpoints were trained with float32.

    Raises:
        CheckpointError: for a rule that lacks a parameter, naming it.
    """
    return RULES[spec.kind](spec, length, dtype)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary factors of some rows, ready to use: `x * cos + roll(x, half) * sin` rotates (Su et al. 2021, in the half-split layout of
    released checkpoints: entry `j` turns with entry `j + dims / 2`). `sin` carries the sign."""

    cos: Float[Tensor, "rows 1 dims"]
    sin: Float[Tensor, "rows 1 dims"]

    def __call__(self, x: Float[Tensor, "rows heads head_dim"]) -> Float[Tensor, "rows heads head_dim"]:
        """Rotate the leading dimensions of every head."""
        dims = self.cos.shape[-1]
        if dims < x.shape[-1]:
            return torch.cat((self(x[..., :dims]), x[..., dims:]), -1)
        return torch.addcmul(x * self.cos, x.roll(dims // 2, -1), self.sin)


class RotaryTable:
    """Rotations of the positions `0..held`.

    Args:
        spec: of one kind of layer.
        length: longest sequence served, which decides the regime of `dynamic` and `longrope`; `None` is the trained context.
        dtype: of the model; factors are computed in float32, or in float64 for a float64 model, and rounded once.
        device: of the rows.
    """

    def __init__(
        self,
        spec: RopeSpec,
        length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.length, self.dtype, self.device = spec, length, dtype, torch.device(device)
        self.held = 0
        nothing = torch.empty(0, 1, spec.dims, dtype=dtype, device=self.device)
        self.factors = Rotation(nothing, nothing)

    def reserve(self, positions: int) -> None:
        """Hold at least the positions `0..positions`; addresses of the factors change when they grow."""
        if positions <= self.held:
            return
        self.held = max(64, 1 << (positions - 1).bit_length())
        wide = torch.promote_types(self.dtype, torch.float32)
        with torch.inference_mode(False):  # a table first grown by inference must serve training too
            frequencies, factor = inverse_frequencies(self.spec, self.length, wide)
            angles = torch.arange(self.held, dtype=wide)[:, None, None] * frequencies
            cos, sin = angles.cos() * factor, angles.sin() * factor
            whole = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
            self.factors = Rotation(*(part.to(self.device, self.dtype) for part in whole))

    def rows(self, positions: Int[Tensor, " rows"]) -> Rotation:
        """The rotation of every row; its position must have been reserved."""
        return Rotation(self.factors.cos.index_select(0, positions), self.factors.sin.index_select(0, positions))


def _default(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """Su et al. 2021 (RoFormer), sec. 3.4."""
    return _powers(spec.theta, spec.dims, dtype).reciprocal(), 1.0


def _linear(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """Chen et al. 2023, arXiv 2306.15595: positions divided by the factor."""
    return _powers(spec.theta, spec.dims, dtype).reciprocal() / _number(spec, "factor"), 1.0


def _dynamic(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """NTK-aware scaling that grows with the sequence (Peng et al. 2023, arXiv 2309.00071, app. B.1); none up to the trained context."""
    factor = _number(spec, "factor")
    reach = max(length or 0, spec.original_length) / spec.original_length
    theta = spec.theta * (factor * reach - (factor - 1)) ** (spec.dims / (spec.dims - 2))
    return _powers(theta, spec.dims, dtype).reciprocal(), 1.0


def _llama3(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between blended linearly in frequency."""
    factor, low, high = (_number(spec, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    plain = _powers(spec.theta, spec.dims, dtype).reciprocal()
    turns = spec.original_length * plain / (2 * math.pi)  # full turns within the trained context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / factor + keep * plain, 1.0


def _yarn(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, sec. 3.2-3.4): a ramp over dimensions between stretched and kept frequencies."""
    factor = _number(spec, "factor")
    fast, slow = _number(spec, "beta_fast", 32.0) or 32.0, _number(spec, "beta_slow", 1.0) or 1.0
    low, high = (_dimension_of(turns, spec) for turns in (fast, slow))
    if _number(spec, "truncate", 1.0):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dims - 1)
    ramp = ((torch.arange(spec.dims // 2, dtype=dtype) - low) / (high - low if high != low else 1e-3)).clamp(0, 1)
    powers = _powers(spec.theta, spec.dims, dtype)
    return (1 / (factor * powers)) * ramp + powers.reciprocal() * (1 - ramp), _yarn_temperature(spec, factor)


def _longrope(spec: RopeSpec, length: int | None, dtype: torch.dtype) -> Frequencies:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): searched factors per dimension, one set within the trained context, one beyond."""
    name = "long_factor" if length is not None and length > spec.original_length else "short_factor"
    stretch = dict(spec.parameters).get(name)
    if not isinstance(stretch, tuple) or len(stretch) != spec.dims // 2:
        raise CheckpointError(f"config.json: rope scaling 'longrope' needs {name!r} as a list of {spec.dims // 2} numbers, got {stretch!r}")
    frequencies = 1 / (torch.tensor(stretch, dtype=dtype) * _powers(spec.theta, spec.dims, dtype))
    given = _number(spec, "attention_factor", 0.0)
    if given:
        return frequencies, given
    factor = _number(spec, "factor")
    return frequencies, 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(spec.original_length))


RULES: dict[str, Callable[[RopeSpec, int | None, torch.dtype], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _powers(theta: float, dims: int, dtype: torch.dtype) -> Float[Tensor, " half"]:
    """Wavelength of each pair of dimensions, in units of 2 pi positions."""
    return torch.pow(torch.tensor(theta, dtype=dtype), torch.arange(0, dims, 2, dtype=dtype) / dims)


def _dimension_of(turns: float, spec: RopeSpec) -> float:
    """The (fractional) pair of dimensions that makes `turns` full turns within the trained context."""
    return spec.dims * math.log(spec.original_length / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))


def _yarn_temperature(spec: RopeSpec, factor: float) -> float:
    given = _number(spec, "attention_factor", 0.0)
    if given:
        return given

    def scale(strength: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0

    top, bottom = _number(spec, "mscale", 0.0), _number(spec, "mscale_all_dim", 0.0)
    return scale(top) / scale(bottom) if top and bottom else scale(1.0)


def _number(spec: RopeSpec, name: str, default: float | None = None) -> float:
    value = dict(spec.parameters).get(name, default)
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"config.json: rope scaling {spec.kind!r} needs the number {name!r}, got {value!r}")
    return float(value)

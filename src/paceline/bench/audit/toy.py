"""Toy decoders: random, tiny, opinionated, so that every output can be enumerated and every mistake shows."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.models.checkpoint import empty_decoder, fill, tensor_shapes
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, RopeSpec
from paceline.models.decoder import Decoder

HEAD_DIM = 8
GAIN = 1.6  # of the linear maps: with the usual small initialisation attention averages everything and a wrong mask hardly shows
SHARPNESS = 2.2  # of the head: the likeliest of 8 tokens gets about two thirds


def toy_decoder(
    vocabulary: int = 8,
    *,
    seed: int = 0,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
    max_positions: int = 512,
    eos: tuple[int, ...] = (),
    sharpness: float = SHARPNESS,
) -> Decoder:
    """A random Llama-shaped decoder whose next-token laws depend strongly on the whole context.

    Args:
        vocabulary: number of token ids.
        seed: of the weights.
        layers, heads, kv_heads, window, max_positions, eos: see `DecoderConfig` and `AttentionSpec`; heads are 8 wide.
        dtype: of the weights.
        sharpness: scale of the logits.
    """
    rope = RopeSpec(theta=100.0, dims=HEAD_DIM)
    attention = AttentionSpec(heads, kv_heads, HEAD_DIM, scale=HEAD_DIM**-0.5, rope=rope, window=window)
    layer = LayerSpec(attention, FeedForwardSpec(width=4 * HEAD_DIM))
    config = DecoderConfig(
        family="toy",
        vocabulary=vocabulary,
        width=2 * HEAD_DIM,
        layers=(layer,) * layers,
        norm_eps=1e-6,
        max_positions=max_positions,
        eos=eos,
    )
    decoder = empty_decoder(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _weight(name, shape, sharpness, generator).to(dtype) for name, shape in tensor_shapes(decoder).items()}
    return fill(decoder, tensors)


def _weight(name: str, shape: tuple[int, ...], sharpness: float, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape)  # norms
    numbers: Tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name == "embed.weight":
        return numbers
    gain = sharpness if name == "head.weight" else GAIN
    return numbers.mul_(gain / float(shape[1]) ** 0.5)

"""A toy encoder-decoder that mostly copies its source: random but for one attention head, which looks where the decoder stands."""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.models.checkpoint import empty_decoder, fill, tensor_shapes
from paceline.models.config import AttentionSpec, DecoderConfig, FeedForwardSpec, LayerSpec, PositionSpec
from paceline.models.decoder import Decoder

HALF = 16  # the first half of a hidden state is about tokens, the second about positions; also the width of a head
WIDTH = 2 * HALF
FOCUS = 3.0  # how sharply the copying head looks at one position
COPY = 6.0  # how loudly it says what stands there


def toy_pair(
    vocabulary: int = 24,
    *,
    seed: int = 0,
    noise: float = 0.3,
    layers: int = 2,
    eos: tuple[int, ...] = (),
    start: tuple[int, ...] = (0,),
    max_positions: int = 64,
    dtype: torch.dtype = torch.float64,
) -> Decoder:
    """A random encoder-decoder whose output follows its source, with differences that depend on the whole context.

    Args:
        vocabulary: number of token ids, on both sides.
        seed: of the weights.
        noise: size of everything that does not copy; the larger, the more the output differs from the source.
        layers: of each stack; the copying head is in the decoder's last.
        eos, start, max_positions: see `DecoderConfig`.
        dtype: of the weights.
    """
    attention = AttentionSpec(2, 2, HALF, scale=HALF**-0.5, rope=None, qkv_bias=True, out_bias=True)
    feed_forward = FeedForwardSpec(WIDTH, "gelu", gated=False, bias=True)

    def stack(cross: AttentionSpec | None, encoder: DecoderConfig | None) -> DecoderConfig:
        return DecoderConfig(
            family="toy pair",
            vocabulary=vocabulary,
            width=WIDTH,
            layers=(LayerSpec(attention, feed_forward, cross=cross),) * layers,
            norm_eps=1e-6,
            tied=True,
            max_positions=max_positions,
            eos=eos,
            positions=PositionSpec("learned", max_positions),
            encoder=encoder,
            shared_embedding=encoder is not None,
            start=start if encoder is not None else (),
        )

    decoder = empty_decoder(stack(attention, stack(None, None)))
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _weight(name, shape, noise, generator) for name, shape in tensor_shapes(decoder).items()}
    _make_it_copy(tensors, layers - 1)
    return fill(decoder, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def _weight(name: str, shape: tuple[int, ...], noise: float, generator: torch.Generator) -> Tensor:
    numbers: Tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith(("norm.weight", "norm.bias")):
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float64)
    if name == "embed.weight":
        numbers[:, HALF:] = 0
        return numbers
    if name.endswith("positions.weight"):
        numbers[:, :HALF] = 0
        return numbers
    return numbers.mul_(noise / float(shape[-1]) ** 0.5)


def _make_it_copy(tensors: dict[str, Tensor], layer: int) -> None:
    """Head 0 of one cross-attention: equal positions find each other, and the token that stands there is added to the hidden state."""
    tensors["encoder.positions.weight"] = tensors["positions.weight"].clone()
    eye = torch.eye(HALF, dtype=torch.float64)
    tensors[f"layers.{layer}.cross.q.weight"][:HALF, HALF:] += FOCUS * eye
    tensors[f"layers.{layer}.cross.k.weight"][:HALF, HALF:] += FOCUS * eye
    tensors[f"layers.{layer}.cross.v.weight"][:HALF, :HALF] += eye
    tensors[f"layers.{layer}.cross.o.weight"][:HALF, :HALF] += COPY * eye

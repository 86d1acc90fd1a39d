"""A non-autoregressive drafter: encoder, bidirectional decoder, and a block of slots that are all filled in one pass.

"Block" architecture of generalised aggressive decoding (Ge et al. 2022, arXiv 2205.10350; Xia et al. 2022, arXiv 2203.16487): the decoder
reads the known target tokens, unshifted and without a start symbol, followed by slots, and every row sees every other. What a slot holds
before the first layer is a soft copy of the source; position embeddings are added again before every layer.

Slots are marked by a mask of their own, never by a token id: whatever ids the known tokens have, none of them is taken for a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paceline.core.errors import UsageError

OFFSET = 2  # rows of the encoder's position table before position 0, as in released BART checkpoints


@dataclass(frozen=True, slots=True)
class NatConfig:
    """Shape of a drafter.

    Args:
        vocabulary: ids, shared with the verifier.
        width, heads: of every layer.
        encoder_layers, decoder_layers: counts.
        encoder_ffn, decoder_ffn: inner widths of the feed-forwards.
        positions: longest source, and longest target with its block.
        block: slots the drafter was trained to fill at once.
        mask, pad, eos: special ids.
        dropout: after every addition of positions, and of what layers add; training only.

    Raises:
        UsageError: for shapes that do not fit together.
    """

    vocabulary: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn: int
    decoder_ffn: int
    positions: int
    block: int = 25
    mask: int = 2
    pad: int = 1
    eos: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UsageError(f"a drafter of width {self.width} cannot have {self.heads} heads; choose a divisor")
        if not 1 <= self.block < self.positions:
            raise UsageError(f"block={self.block} must be between 1 and {self.positions - 1}, the positions less one")
        if len({self.mask, self.pad, self.eos}) < 3:
            raise UsageError("mask, pad and eos must be three different ids: an id with two meanings would be read as a slot")


@dataclass(frozen=True, slots=True)
class Source:
    """What the decoder needs of encoded sources; computed once per source.

    Attributes:
        embedding: of the tokens; what slots copy from.
        places: embedding plus position, what slots choose by.
        keys, values: of every decoder layer's cross-attention.
        known: false at padding.
    """

    embedding: Float[Tensor, "rows source width"]
    places: Float[Tensor, "rows source width"]
    keys: tuple[Float[Tensor, "rows heads source head_dim"], ...]
    values: tuple[Float[Tensor, "rows heads source head_dim"], ...]
    known: Bool[Tensor, "rows source"]

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (self.embedding, self.places, *self.keys, *self.values))


def stack(sources: Sequence[Source]) -> Source:
    """Sources of one row each as one of many rows, padded to the longest; a single one is returned as it is."""
    if len(sources) == 1:
        return sources[0]
    longest = max(source.known.shape[1] for source in sources)

    def joined(tensors: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat([_lengthened(tensor, axis, longest) for tensor in tensors])

    layers = range(len(sources[0].keys))
    return Source(
        joined([source.embedding for source in sources], 1),
        joined([source.places for source in sources], 1),
        tuple(joined([source.keys[layer] for source in sources], 2) for layer in layers),
        tuple(joined([source.values[layer] for source in sources], 2) for layer in layers),
        joined([source.known for source in sources], 1),
    )


def _lengthened(tensor: Tensor, axis: int, length: int) -> Tensor:
    """Zeros (or false) appended along an axis."""
    missing = length - tensor.shape[axis]
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (0, missing))


class Attention(nn.Module):
    """Multi-head attention with biases; queries from one stream, keys and values from another or the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values, self.output = (nn.Linear(width, width) for _ in range(4))

    def project(self, x: Float[Tensor, "rows n width"]) -> tuple[Float[Tensor, "rows heads n dim"], Float[Tensor, "rows heads n dim"]]:
        """Keys and values of a stream."""
        return self._split(self.keys(x)), self._split(self.values(x))

    def forward(
        self,
        x: Float[Tensor, "rows n width"],
        keys: Float[Tensor, "rows heads m dim"],
        values: Float[Tensor, "rows heads m dim"],
        known: Bool[Tensor, "rows m"],
    ) -> Float[Tensor, "rows n width"]:
        """Attend to the known keys; no order among them."""
        found = F.scaled_dot_product_attention(self._split(self.queries(x)), keys, values, attn_mask=known[:, None, None])
        output: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return output

    def _split(self, x: Float[Tensor, "rows n width"]) -> Float[Tensor, "rows heads n dim"]:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class Layer(nn.Module):
    """Post-norm layer: bidirectional self-attention, cross-attention where there is a source, feed-forward with GELU."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(width, heads), nn.LayerNorm(width)
        if cross:
            self.cross, self.cross_norm = Attention(width, heads), nn.LayerNorm(width)
        self.up, self.down, self.norm = nn.Linear(width, ffn), nn.Linear(ffn, width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "rows n width"], known: Bool[Tensor, "rows n"], source: Source | None = None, index: int = 0
    ) -> Float[Tensor, "rows n width"]:
        """Run the layer; `index` names its keys and values in `source`."""
        x = self.attention_norm(x + self.dropout(self.attention(x, *self.attention.project(x), known)))
        if source is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, source.keys[index], source.values[index], source.known)))
        output: Tensor = self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return output


class NatDrafter(nn.Module):
    """The network. Weights are random until loaded; one embedding serves source, target and output."""

    def __init__(self, config: NatConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.source_positions = nn.Embedding(config.positions + OFFSET, width)
        self.source_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(
            Layer(width, config.heads, config.encoder_ffn, config.dropout, cross=False) for _ in range(config.encoder_layers)
        )
        self.target_positions = nn.Embedding(config.positions, width)
        self.copy = nn.Linear(width, width, bias=False)  # W of the soft copy
        self.target_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            Layer(width, config.heads, config.decoder_ffn, config.dropout, cross=True) for _ in range(config.decoder_layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    @property
    def decoder_layers(self) -> list[Layer]:
        """The decoder's layers, typed."""
        return [layer for layer in self.decoder if isinstance(layer, Layer)]

    def encode(self, ids: Int[Tensor, "rows source"], known: Bool[Tensor, "rows source"] | None = None) -> Source:
        """Read sources.

        Args:
            ids: padded on the right.
            known: false at padding; by default wherever the id is the padding id.

        Raises:
            UsageError: if a source is longer than the positions.
        """
        if ids.shape[1] > self.config.positions:
            raise UsageError(f"the source has {ids.shape[1]} tokens and the drafter reads {self.config.positions}; shorten it")
        mask = ids != self.config.pad if known is None else known
        embedding = self.embedding(ids)
        positions = self.source_positions.weight[OFFSET : OFFSET + ids.shape[1]]
        x = self.dropout(self.source_norm(embedding + positions))
        for layer in self.encoder:
            x = layer(x, mask)
        pairs = [layer.cross.project(x) for layer in self.decoder_layers]
        return Source(embedding, embedding + positions, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), mask)

    def forward(
        self,
        source: Source,
        ids: Int[Tensor, "rows n"],
        slots: Bool[Tensor, "rows n"],
        known: Bool[Tensor, "rows n"] | None = None,
    ) -> Float[Tensor, "rows n width"]:
        """Final states of every row of the decoder input.

        Args:
            source: from `encode`.
            ids: known target tokens from position 0 on; what stands at slots is not read.
            slots: true where a token is to be predicted.
            known: false at padding.
        """
        mask = torch.ones_like(slots) if known is None else known
        positions = self.target_positions.weight[: ids.shape[1]]
        x: Tensor = self.target_norm(torch.where(slots[..., None], self._copied(source, positions), self.embedding(ids)))
        for index, layer in enumerate(self.decoder):
            x = layer(self.dropout(x + positions), mask, source, index)
        return x

    def logits(self, states: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocabulary"]:
        """Output logits; the output matrix is the embedding."""
        return F.linear(states, self.embedding.weight)

    def fill(self, source: Source, prefix: Int[Tensor, " prefix"], block: int) -> Float[Tensor, "block vocabulary"]:
        """Logits of `block` slots after a prefix of one target: row j predicts the token at position `len(prefix) + j`."""
        ids = F.pad(prefix, (0, block), value=self.config.mask)[None]
        slots = (torch.arange(ids.shape[1], device=ids.device) >= len(prefix))[None]
        return self.logits(self(source, ids, slots)[0, len(prefix) :])

    def _copied(self, source: Source, positions: Float[Tensor, "n width"]) -> Float[Tensor, "rows n width"]:
        """Each target position's mixture of source embeddings, chosen by content and place."""
        scores: Tensor = self.copy(positions) @ source.places.transpose(1, 2)
        return scores.masked_fill(~source.known[:, None], -torch.inf).softmax(-1) @ source.embedding


def new_nat(config: NatConfig, seed: int) -> NatDrafter:
    """A drafter with seeded weights of spread 0.02 (BERT's), whose slots begin by copying the source token of their own position."""
    torch.manual_seed(seed)
    network = NatDrafter(config)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    align(network)
    return network


@torch.no_grad()
def align(network: NatDrafter) -> None:
    """Set target positions to the source's and the copy's W to a multiple of the identity, so that r_t is nearest to s_t.

    The target's positions are scaled to the stream they are added to, which a norm has given unit spread.
    """
    source = network.source_positions.weight[OFFSET:]
    spread = source.std().clamp_min(1e-6)
    network.target_positions.weight.copy_(source * (0.5 / spread))
    sharpness = 8.0  # score of the right place: the softmax then puts most of its weight near it
    scale = sharpness / (0.5 / spread * source.square().sum(-1).mean())
    network.copy.weight.copy_(torch.eye(network.config.width) * scale)
    for layer in network.decoder_layers:
        nn.init.orthogonal_(layer.cross.queries.weight)
        layer.cross.keys.weight.copy_(layer.cross.queries.weight)

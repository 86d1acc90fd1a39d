"""The encoder side of an encoder-decoder: the same layers over a whole source at once, then keys and values for every decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import GUARD, ForwardBatch, Segment
from paceline.models.decoder import Decoder

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A stretch of scratch slots with nothing committed: the rows of one source."""

    start: int
    length: int = 0

    def runs(self, stop: int) -> Sequence[tuple[int, int]]:
        return [(self.start, self.start + stop)]


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """Keys and values of one source for every decoder layer; a `core.batch.CrossView`.

    Args:
        keys, values: one per decoder layer, (source, kv_heads, head_dim), in memory of their own.
    """

    keys: tuple[Float[Tensor, "source kv_heads head_dim"], ...]
    values: tuple[Float[Tensor, "source kv_heads head_dim"], ...]


def encode(decoder: Decoder, sources: Sequence[Ids]) -> Float[Tensor, "rows width"]:
    """Encoder output of several sources, one after the other; every row sees its whole source, and no other.

    Raises:
        ValueError: if the decoder has no encoder, or a source is empty.
    """
    encoder = decoder.encoder
    if encoder is None:
        raise ValueError(f"{decoder.config.family} is decoder-only and cannot encode a source")
    if not all(sources):
        raise ValueError("an empty source cannot be encoded; give at least one token")
    starts = [0, *accumulate(map(len, sources))]
    batch = ForwardBatch(
        [token for source in sources for token in source],
        [position for source in sources for position in range(len(source))],
        [Segment(_Canvas(start), len(source), canvas=len(source)) for start, source in zip(starts, sources, strict=False)],
        logit_rows=(),
    )
    # Nothing outlives a layer, so layers of one shape take turns in one pair of pools.
    shapes = [(spec.mixer.kv_heads, spec.mixer.head_dim) for spec in encoder.config.layers]
    pools = {shape: torch.zeros(2, starts[-1] + GUARD, *shape, dtype=encoder.dtype, device=encoder.device) for shape in shapes}
    step = encoder.step(batch, [pools[shape][0] for shape in shapes], [pools[shape][1] for shape in shapes])
    output: Tensor = encoder.norm.forward(encoder.run(encoder.inputs(batch), step))
    return output


def encode_sources(decoder: Decoder, sources: Sequence[Ids]) -> list[EncodedSource]:
    """What the decoder's cross-attention reads of each source. Arguments and errors as for `encode`."""
    rows = encode(decoder, sources)
    pairs = [mixer.remember(rows) for mixer in decoder.cross_mixers()]
    lengths = list(map(len, sources))
    parts = [(key.split(lengths), value.split(lengths)) for key, value in pairs]
    return [
        EncodedSource(tuple(_own(key[at]) for key, _ in parts), tuple(_own(value[at]) for _, value in parts)) for at in range(len(sources))
    ]


def _own(rows: Tensor) -> Tensor:
    """A copy: a view would keep keys, values and the sources beside this one alive."""
    return rows.clone(memory_format=torch.contiguous_format)

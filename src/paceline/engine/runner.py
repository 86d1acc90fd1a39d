"""A runner binds one set of weights to one memory and executes forwards; everything that computes logits goes through one."""

from __future__ import annotations

from time import perf_counter

import torch

from paceline.attention.plan import Exactness
from paceline.core.batch import CrossView, ForwardBatch, ForwardResult, Segment
from paceline.engine.sources import Sources
from paceline.memory.contract import TokenMemory
from paceline.memory.ledger import Ledger
from paceline.memory.slots import KVLayout, SlotMemory
from paceline.models.decoder import Decoder
from paceline.models.encoder import encode_sources

GIBIBYTE = 1 << 30
PROBED_SOURCE = 64  # source tokens that a probed forward of an encoder-decoder reads


class Runner:
    """Executes `ForwardBatch`es.

    Args:
        decoder: the network; several runners may share one.
        memory: where keys and values go.
        exact: bit-exact shapes, or `None`.
        sources: reads the sources of an encoder-decoder.
    """

    def __init__(self, decoder: Decoder, memory: TokenMemory, exact: Exactness | None = None, sources: Sources | None = None) -> None:
        self.decoder, self.memory, self.exact, self.sources = decoder, memory, exact, sources
        self.forwards = 0
        self.rows = 0
        self.seconds = 0.0

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Run one forward; keys and values of its rows land in scratch slots of their sequences' memory."""
        start = perf_counter()
        with torch.inference_mode():
            result = self.decoder.forward(batch, self.memory.keys, self.memory.values, self.exact)
        self.forwards += 1
        self.rows += batch.rows
        self.seconds += perf_counter() - start
        self.memory.ledger.passing(
            {
                "scratch": batch.rows * self.memory.layout.bytes_per_slot,
                "logits": result.logits.nbytes,
                "mask": result.mask_bytes,
                "activations": batch.rows * self.decoder.row_bytes,
            }
        )
        return result

    def probe(self, rows: int, repeats: int = 5) -> float:
        """Seconds of a forward with `rows` rows over a short context: the fastest of a few.

        It runs over a memory of its own: the real one may be full, and nobody's cached prefix should go for a measurement.
        """
        apart = Runner(self.decoder, SlotMemory(self.memory.layout, rows, prefix_cache=False), self.exact)
        memory = apart.memory.admit([0] * rows)
        memory.reserve(rows)
        with torch.inference_mode():
            cross = self._probed_source()
        positions = [row % self.decoder.config.max_positions for row in range(rows)]  # a table of positions may end before the rows do
        batch = ForwardBatch([0] * rows, positions, [Segment(memory, rows, cross=cross)])
        times = []
        for _ in range(repeats):
            start = perf_counter()
            apart.forward(batch)
            if self.decoder.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - start)
        return min(times)

    def _probed_source(self) -> CrossView | None:
        """A source to read while probing, where the decoder reads one."""
        encoder = self.decoder.encoder
        return None if encoder is None else encode_sources(self.decoder, [[0] * min(PROBED_SOURCE, encoder.config.max_positions)])[0]


def default_slots(decoder: Decoder, sequences: int, budget: int = 2 * GIBIBYTE) -> int:
    """KV slots for `sequences` full contexts, as far as a budget of bytes allows."""
    layers = decoder.config.layers
    per_slot = sum(2 * spec.mixer.kv_heads * spec.mixer.head_dim for spec in layers) * decoder.dtype.itemsize
    return max(256, min(sequences * decoder.config.max_positions, budget // per_slot))


def make_runner(
    decoder: Decoder,
    *,
    slots: int,
    ledger: Ledger,
    category: str = "kv",
    exact: Exactness | None = None,
    prefix_cache: bool = True,
) -> Runner:
    """A runner with a fresh memory of `slots` token slots.

    Targets of an encoder-decoder never become prefixes for others: their keys and values depend on their source.
    """
    shapes = tuple((spec.mixer.kv_heads, spec.mixer.head_dim) for spec in decoder.config.layers)
    layout = KVLayout(layers=shapes, dtype=decoder.dtype, device=decoder.device)
    paired = decoder.encoder is not None
    memory = SlotMemory(layout, slots, ledger, category, prefix_cache and not paired)
    return Runner(decoder, memory, exact, Sources(decoder, ledger) if paired else None)

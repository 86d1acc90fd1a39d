"""A memory as simple as can be, so that parity tests depend on the decoder alone: pools, and a list of slots per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from paceline.core.batch import ForwardBatch, Segment
from paceline.models.decoder import Decoder

SLOTS = 512


class PlainMemory:
    """Keys and values of every layer; `scattered` hands out slots that are nowhere adjacent, so every read is a gather."""

    def __init__(self, decoder: Decoder, scattered: bool = False, slots: int = SLOTS) -> None:
        shapes = [(slots, layer.mixer.kv_heads, layer.mixer.head_dim) for layer in decoder.config.layers]
        # never seen before written: anything this large would show. Finite, as pools promise: masked views may pass over it.
        self.keys = [torch.full(shape, 1e3, dtype=decoder.dtype) for shape in shapes]
        self.values = [torch.full(shape, 1e3, dtype=decoder.dtype) for shape in shapes]
        self.free = [*range(0, slots, 2), *range(1, slots, 2)] if scattered else list(range(slots))

    def sequence(self, most: int) -> PlainSequence:
        """Slots for a sequence of at most `most` tokens, scratch included."""
        slots, self.free = self.free[:most], self.free[most:]
        return PlainSequence(slots)


class PlainSequence:
    """Logical slots of one sequence: `length` committed ones, then scratch."""

    def __init__(self, slots: list[int]) -> None:
        self.slots, self.length = slots, 0

    def runs(self, stop: int) -> Sequence[tuple[int, int]]:
        """Physical ranges of the first `stop` logical slots."""
        used = self.slots[:stop]
        cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(used)) if b != a + 1), len(used)]
        return [(used[low], used[high - 1] + 1) for low, high in pairwise(cuts)]

    def commit(self, nodes: Sequence[int]) -> None:
        """Keep the scratch rows `nodes`, in order; the other scratch slots come behind."""
        scratch = self.slots[self.length :]
        kept = [scratch[node] for node in nodes]
        rest = [slot for i, slot in enumerate(scratch) if i not in set(nodes)]
        self.slots[self.length :] = kept + rest
        self.length += len(kept)


def forward(
    decoder: Decoder,
    memory: PlainMemory,
    sequence: PlainSequence,
    ids: Sequence[int],
    positions: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Logits of rows of one sequence, behind what it has committed; nothing is committed."""
    rows = positions if positions is not None else range(sequence.length, sequence.length + len(ids))
    batch = ForwardBatch(list(ids), list(rows), [Segment(sequence, len(ids), mask)])
    with torch.inference_mode():
        return decoder.forward(batch, memory.keys, memory.values).logits


def full(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits of every position, in one forward over an empty memory."""
    memory = PlainMemory(decoder)
    return forward(decoder, memory, memory.sequence(len(ids)), ids)


def greedy(decoder: Decoder, ids: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens, one row per forward after the prompt."""
    memory = PlainMemory(decoder)
    sequence = memory.sequence(len(ids) + count)
    rows, out = list(ids), []
    for _ in range(count):
        logits = forward(decoder, memory, sequence, rows)
        sequence.commit(range(len(rows)))
        rows = [int(logits[-1].argmax())]
        out += rows
    return out

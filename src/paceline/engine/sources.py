"""Reading sources: the encoder runs once per source, when a sequence that needs it first gets a turn."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from paceline.memory.cross import CrossBook, Source
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.models.encoder import encode_sources
from paceline.scheduling.continuous import Active

MOST_ROWS = 4096  # source tokens encoded in one forward; bounds its activations


class Sources:
    """Gives every sequence of an encoder-decoder the keys and values of its source.

    They are held until the last sequence that reads them ends, is cancelled or is preempted; after a preemption the source is read again.

    Args:
        decoder: with an encoder.
        ledger: where their bytes are booked.
    """

    def __init__(self, decoder: Decoder, ledger: Ledger) -> None:
        self.decoder, self.book = decoder, CrossBook(ledger)
        self.forwards = 0
        self.rows = 0

    def attach(self, actives: Iterable[Active]) -> None:
        """Attach its source to each sequence that lacks it; sources that nobody holds yet are encoded together."""
        waiting = [active for active in actives if active.memory.cross is None]
        missing = list(
            dict.fromkeys(active.sequence.request.source for active in waiting if active.sequence.request.source not in self.book.held)
        )
        for group in _groups(missing):
            with torch.inference_mode():
                encoded = encode_sources(self.decoder, group)
            self.forwards += 1
            self.rows += sum(map(len, group))
            for source, view in zip(group, encoded, strict=True):
                first = next(active for active in waiting if active.sequence.request.source == source)
                first.memory.cross = self.book.keep(source, view)
        for active in waiting:
            if active.memory.cross is None:
                active.memory.cross = self.book.find(active.sequence.request.source)


def _groups(sources: Iterable[Source]) -> Iterable[list[Source]]:
    """Sources to encode together, in order, each group of at most `MOST_ROWS` tokens or a single source."""
    group: list[Source] = []
    for source in sources:
        if group and sum(map(len, group)) + len(source) > MOST_ROWS:
            yield group
            group = []
        group.append(source)
    if group:
        yield group

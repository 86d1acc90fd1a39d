"""Encoded sources are held once, as long as somebody reads them, and booked."""

from __future__ import annotations

import pytest
import torch

from paceline.memory.allocator import OwnershipError
from paceline.memory.cross import CrossBook
from paceline.memory.ledger import Ledger
from paceline.memory.slots import KVLayout, SlotMemory


class View:
    """Two layers of a source of three tokens."""

    keys = values = (torch.zeros(3, 1, 4), torch.zeros(3, 1, 4))


SIZE = 4 * 3 * 4 * 4


def memory(ledger: Ledger) -> SlotMemory:
    return SlotMemory(KVLayout(((1, 4),), torch.float32, torch.device("cpu")), 64, ledger)


def test_the_last_reader_frees_it() -> None:
    ledger = Ledger()
    book = CrossBook(ledger)
    assert book.find((1, 2, 3)) is None
    held = book.keep((1, 2, 3), View())
    assert book.find((1, 2, 3)) is held
    assert ledger.live["cross_kv"] == SIZE
    held.release()
    assert ledger.live["cross_kv"] == SIZE
    held.release()
    assert ledger.live["cross_kv"] == 0
    assert book.find((1, 2, 3)) is None
    with pytest.raises(OwnershipError, match="more often"):
        held.release()


def test_it_goes_with_the_sequence_and_its_forks() -> None:
    ledger = Ledger()
    book, slots = CrossBook(ledger), memory(ledger)
    sequence = slots.admit([5, 6])
    sequence.cross = book.keep((1, 2, 3), View())
    sequence.reserve(2)
    sequence.commit([0])
    twin = sequence.fork()
    assert twin.cross is sequence.cross
    sequence.truncate(0)
    assert sequence.cross is not None  # only the target was cut
    slots.release(sequence)
    assert ledger.live["cross_kv"] == SIZE
    slots.release(twin)
    assert ledger.live["cross_kv"] == 0


def test_a_reset_frees_everything() -> None:
    ledger = Ledger()
    book, slots = CrossBook(ledger), memory(ledger)
    for source in ((1,), (2,)):
        slots.admit([5]).cross = book.keep(source, View())
    assert ledger.live["cross_kv"] == 2 * SIZE
    slots.reset()
    assert not book.held

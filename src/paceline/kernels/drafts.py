"""Laws that children were drawn from, as the kernels exchange them: records that point to ids and probabilities."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Mapping

import torch

from paceline.core.tree import Distribution

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
RECORD = 5  # numbers of a record


class CDraft(ctypes.Structure):
    """`draft` of draft.h."""

    _fields_ = (("node", INTEGER), ("ids", POINTER), ("probs", POINTER), ("size", INTEGER), ("wide", INTEGER))


class Drafts(Mapping[int, Distribution]):
    """Laws by node that a kernel wrote; read when somebody asks for one.

    Args:
        room: memory of records, ids and float64 probabilities, which all records point into.
        first: where the first record begins, in numbers of 8 bytes.
        count: of records.
    """

    __slots__ = ("_first", "_room", "count")

    def __init__(self, room: array[int], first: int, count: int) -> None:
        self._room, self._first, self.count = room, first, count

    @property
    def address(self) -> int:
        """Of the first record."""
        return self._room.buffer_info()[0] + 8 * self._first

    def __getitem__(self, node: int) -> Distribution:
        room, start = self._room, self._room.buffer_info()[0]
        for at in range(self._first, self._first + RECORD * self.count, RECORD):
            if room[at] == node:
                ids, probs, size = (room[at + 1] - start) // 8, (room[at + 2] - start) // 8, room[at + 3]
                return Distribution(tuple(array("d", room[probs : probs + size].tobytes())), tuple(room[ids : ids + size]))
        raise KeyError(node)

    def __iter__(self) -> Iterator[int]:
        return iter(self._room[self._first : self._first + RECORD * self.count : RECORD])

    def __len__(self) -> int:
        return self.count


def records(laws: Mapping[int, Distribution]) -> tuple[int, int, object]:
    """Laws as a kernel reads them: the address of the first record, how many there are, and what must outlive them."""
    if isinstance(laws, Drafts):
        return laws.address, laws.count, laws
    held = [_held(node, law) for node, law in laws.items()]
    made = (CDraft * len(held))(*(record for record, _ in held))
    return ctypes.addressof(made), len(held), (made, held)


def _held(node: int, law: Distribution) -> tuple[CDraft, object]:
    """A record, and what must outlive it."""
    if isinstance(law.probs, tuple):
        assert isinstance(law.ids, tuple)
        numbers, places = array("d", law.probs), array("q", law.ids)
        return CDraft(node, places.buffer_info()[0], numbers.buffer_info()[0], len(numbers), True), (numbers, places)
    probs = law.probs.cpu().contiguous()
    probs = probs if probs.dtype in (torch.float32, torch.float64) else probs.float()
    ids = None if law.ids is None else torch.as_tensor(law.ids, dtype=torch.int64, device="cpu").contiguous()
    record = CDraft(node, None if ids is None else ids.data_ptr(), probs.data_ptr(), len(probs), probs.dtype is torch.float64)
    return record, (probs, ids)

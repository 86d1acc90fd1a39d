"""The n-gram table of STAND and its draws, as kernels: functions on numbers and arrays of the house."""

from __future__ import annotations

import ctypes
import weakref
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Many
from struct import Struct

from paceline.kernels.build import library

POINTER, INTEGER, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
MOST_TOKENS = 64  # that a row can hold; ngrams.c: MOST
NOWHERE = -1
Row = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], int]  # context, ids, probabilities, count of laws

SIGNATURES = (
    ("ngrams_new", POINTER, [POINTER, INTEGER, INTEGER, INTEGER]),
    ("ngrams_free", None, [POINTER]),
    ("ngrams_learn", INTEGER, [POINTER, INTEGER, POINTER, INTEGER, INTEGER, INTEGER, POINTER, POINTER, POINTER]),
    ("ngrams_restore", INTEGER, [POINTER, INTEGER, POINTER, INTEGER, POINTER, POINTER, INTEGER, INTEGER]),
    ("ngrams_longest", INTEGER, [POINTER, INTEGER, POINTER, INTEGER, POINTER]),
    ("ngrams_use", None, [POINTER, INTEGER]),
    ("ngrams_drop", None, [POINTER, INTEGER]),
    ("ngrams_rows", INTEGER, [POINTER, INTEGER]),
    ("ngrams_read", INTEGER, [POINTER, INTEGER, INTEGER, POINTER, POINTER, POINTER, POINTER]),
    ("ngrams_told", None, [POINTER, POINTER]),
    ("stand", INTEGER, [POINTER, POINTER, POINTER, INTEGER]),
)

WALK = Struct("=14qQ9q")  # `walk` of stand.c
FOUND = Struct("=3q")  # its last three
ODDS = Struct("=5q3d")  # `odds` of stand.c


class CKnown(ctypes.Structure):
    """`known` of ngrams.h."""

    _fields_ = (("ids", ctypes.POINTER(ctypes.c_int32)), ("probs", ctypes.POINTER(DOUBLE)), ("size", INTEGER), ("count", INTEGER))


class Ngrams:
    """The kernels of `ngrams.c` and `stand.c`. Spaces are small numbers. For one thread at a time.

    Args:
        path: of the library.
        lengths: of contexts, falling.
        width, capacity: see `NgramTable`.

    Raises:
        MemoryError: here and below, if there is no room.
    """

    def __init__(self, path: str, lengths: tuple[int, ...], width: int, capacity: int) -> None:
        # The interpreter stays locked: a call takes microseconds, and the arrays must not change under it.
        self._kernels = kernels = ctypes.PyDLL(path)
        for name, result, signature in SIGNATURES:
            function = getattr(kernels, name)
            function.argtypes, function.restype = signature, result
        asked = array("q", lengths)
        self._table = kernels.ngrams_new(asked.buffer_info()[0], len(asked), width, capacity)
        if not self._table:
            raise MemoryError("no room for an n-gram table")
        self._longest, self._width = lengths[0], width
        weakref.finalize(self, kernels.ngrams_free, self._table)

    def learn(self, space: int, text: array[int], begin: int, end: int, laws: Many[tuple[Many[int], Many[float]]]) -> None:
        """Average laws in; see `NgramTable.learn`."""
        sizes, ids, probs = array("q", [len(ids) for ids, _ in laws]), array("q"), array("f")
        for tokens, shares in laws:
            ids.extend(tokens)
            probs.extend(shares)
        places = (sizes.buffer_info()[0], ids.buffer_info()[0], probs.buffer_info()[0])
        if self._kernels.ngrams_learn(self._table, space, text.buffer_info()[0], begin, end, len(laws), *places):
            raise MemoryError("no room to learn n-grams")

    def longest(self, space: int, context: Many[int]) -> Row | None:
        """The row of the longest end of a context that is known; counts as a use of it."""
        tokens, known = array("i", context), CKnown()
        length = self._kernels.ngrams_longest(
            self._table, space, tokens.buffer_info()[0] + 4 * len(tokens), len(tokens), ctypes.byref(known)
        )
        if not length:
            return None
        return tuple(tokens[-length:]), tuple(known.ids[: known.size]), tuple(known.probs[: known.size]), known.count

    def restore(self, space: int, context: Many[int], ids: Many[int], probs: Many[float], count: int) -> None:
        """Put a row in place."""
        tokens, numbers, shares = array("i", context), array("q", ids), array("d", probs)
        places = (numbers.buffer_info()[0], shares.buffer_info()[0])
        if self._kernels.ngrams_restore(self._table, space, tokens.buffer_info()[0], len(tokens), *places, len(numbers), count):
            raise MemoryError("no room to restore n-grams")

    def rows(self, space: int) -> Iterator[Row]:
        """All rows of a space, the least recently used first."""
        context, ids, probs = array("i", [0]) * self._longest, array("i", [0]) * self._width, array("d", [0.0]) * self._width
        shape = array("q", [0, 0, 0])
        places = [room.buffer_info()[0] for room in (shape, context, ids, probs)]
        at = NOWHERE
        for _ in range(self._kernels.ngrams_rows(self._table, space)):
            at = self._kernels.ngrams_read(self._table, space, at, *places)
            length, size, count = shape
            yield tuple(context[:length]), tuple(ids[:size]), tuple(probs[:size]), count

    def use(self, space: int) -> None:
        """Count as a use of a space."""
        self._kernels.ngrams_use(self._table, space)

    def drop(self, space: int) -> None:
        """Forget the rows of a space."""
        self._kernels.ngrams_drop(self._table, space)

    def told(self) -> tuple[int, int, int]:
        """Rows, evictions, and bytes."""
        told = array("q", [0, 0, 0])
        self._kernels.ngrams_told(self._table, told.buffer_info()[0])
        rows, evictions, held = told
        return rows, evictions, held

    def draw(self, walks: bytearray, count: int, odds: bytes) -> int:
        """Draw trees.

        Args:
            walks: `count` records as `WALK` packs them, the last three numbers of each to be filled in.
            odds: as `ODDS` packs them.

        Returns:
            Rows of all trees.
        """
        rows: int = self._kernels.stand(self._table, odds, (ctypes.c_char * len(walks)).from_buffer(walks), count)
        if rows < 0:
            raise MemoryError("no room to draw")
        return rows


def ngrams(lengths: tuple[int, ...], width: int, capacity: int) -> Ngrams | None:
    """A table, if this machine can have the kernel."""
    path = library("stand") if width <= MOST_TOKENS else None
    return None if path is None else Ngrams(str(path), lengths, width, capacity)

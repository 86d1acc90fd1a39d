"""The kernels that choose a draft from places in text, and squeeze them, as functions on arrays of the house."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache

from paceline.kernels.build import library

POINTER, INTEGER, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
RECORD = 3  # numbers of a place: start, stop, weight


class CQuestion(ctypes.Structure):
    """`question` of forest.c, its sources laid out flat."""

    _fields_ = (
        ("prompt_text", POINTER),
        ("prompt_tree", POINTER),
        ("prompt_size", INTEGER),
        ("outputs_text", POINTER),
        ("outputs_tree", POINTER),
        ("outputs_size", INTEGER),
        ("query", POINTER),
        *((name, INTEGER) for name in ("length", "looked", "budget", "depth", "single", "reserve_input", "reserve_output")),
        ("weight", DOUBLE),
        *((name, POINTER) for name in ("token", "parent", "kind")),
    )


class Chooser:
    """The kernel of `forest.c`, with what it is always asked with. For one thread at a time.

    Args:
        path: of the library.
        looked: newest places of a tree that are looked at.
        weight: of outputs beside the prompt.
        single: whether only the best child of the best child is wanted.
    """

    def __init__(self, path: str, looked: int, weight: float, single: bool) -> None:
        # The interpreter stays locked: a call takes microseconds, and the arrays must not change under it.
        self._choose = ctypes.PyDLL(path).choose
        self._choose.argtypes, self._choose.restype = [POINTER], INTEGER
        self._question = CQuestion(looked=looked, weight=weight, single=single)
        self._address = ctypes.addressof(self._question)
        self._room = 0
        self._found = array("i")

    def __call__(
        self,
        prompt: tuple[array[int], array[float]] | None,
        outputs: tuple[array[int], array[float]] | None,
        query: Sequence[int],
        budget: int,
        depth: int,
        reserve: tuple[int, int],
    ) -> tuple[list[int], list[int], list[int]]:
        """The chosen nodes in pre-order: tokens, parents, and classes of evidence.

        Args:
            prompt, outputs: text, and the places in it, of the query's first token.
            query: what must follow that token.
            budget, depth: most nodes, and how deep.
            reserve: nodes kept for the best of each source.

        Raises:
            MemoryError: if there is no room.
        """
        asked = self._question
        if budget > self._room:
            self._enlarge(budget)
        if prompt is None:
            asked.prompt_size = 0
        else:
            asked.prompt_text = prompt[0].buffer_info()[0]
            asked.prompt_tree, size = prompt[1].buffer_info()
            asked.prompt_size = size // RECORD
        if outputs is None:
            asked.outputs_size = 0
        else:
            asked.outputs_text = outputs[0].buffer_info()[0]
            asked.outputs_tree, size = outputs[1].buffer_info()
            asked.outputs_size = size // RECORD
        behind = array("i", query)
        asked.query, asked.length = behind.buffer_info()
        asked.budget, asked.depth = budget, depth
        asked.reserve_input, asked.reserve_output = reserve
        count = self._choose(self._address)
        if count < 0:
            raise MemoryError("no room to choose a draft")
        found, room = self._found, self._room
        return found[:count].tolist(), found[room : room + count].tolist(), found[2 * room : 2 * room + count].tolist()

    def _enlarge(self, budget: int) -> None:
        """Have room for drafts of so many nodes."""
        self._room, self._found = budget, array("i", bytes(12 * budget))
        start, asked = self._found.buffer_info()[0], self._question
        asked.token, asked.parent, asked.kind = start, start + 4 * budget, start + 8 * budget


class Squeezer:
    """The kernel of `squeeze.c`."""

    def __init__(self, path: str) -> None:
        self._squeeze = ctypes.PyDLL(path).squeeze
        self._squeeze.argtypes, self._squeeze.restype = [POINTER, INTEGER, POINTER, INTEGER], INTEGER

    def __call__(self, text: array[int], tree: array[float], bound: int) -> None:
        """Halve counts until a tree has at most `bound` nodes; see `trie.Forest.squeeze`.

        Raises:
            MemoryError: if there is no room to sort its places.
        """
        start, size = tree.buffer_info()
        kept = self._squeeze(start, size // RECORD, text.buffer_info()[0], bound)
        if kept < 0:
            raise MemoryError("no room to squeeze a tree")
        del tree[RECORD * kept :]


def chooser(looked: int, weight: float, single: bool) -> Chooser | None:
    """A kernel that chooses, if this machine can have it."""
    path = _path()
    return None if path is None else Chooser(path, looked, weight, single)


@cache
def squeezer() -> Squeezer | None:
    """The kernel that squeezes, likewise."""
    path = _path()
    return None if path is None else Squeezer(path)


@cache
def _path() -> str | None:
    path = library("forest")
    return None if path is None else str(path)

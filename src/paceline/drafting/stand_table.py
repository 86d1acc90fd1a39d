"""The n-gram table of STAND: for every context seen, the target's own likeliest next tokens with their mean probabilities.

STAND, arXiv 2506.04708: the largest entries of the target's law are stored *as they are*, not renormalised, and averaged over the
occurrences of a context. Entries lie in flat arrays, so that those of many contexts are gathered at once.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from paceline.core.errors import UsageError

Context = tuple[int, ...]
FIRST_ROWS = 256
KEY_BYTES = 170  # of one dictionary entry with a key of three numbers, measured on CPython 3.11


class NgramTable:
    """Entries of several spaces; contexts of one are invisible in the others.

    Args:
        width: most tokens kept per context (K).
        capacity: most contexts kept, over all spaces. Beyond it, the contexts that were not used for longest go first: those of the space
            that was not used for longest, and in it the oldest.

    Raises:
        UsageError: if either is not positive.
    """

    def __init__(self, width: int, capacity: int) -> None:
        if width < 1 or capacity < 1:
            raise UsageError(f"an n-gram table needs at least one token per context and one context, got {width} and {capacity}")
        self.width, self.capacity = width, capacity
        self.evictions = 0
        self._spaces: dict[Hashable, dict[Context, int]] = {}  # both levels from the least to the most recently used
        self._free: list[int] = []
        self._used = 0
        self._ids, self._probs, self._count = _rows(min(FIRST_ROWS, capacity), width)

    def __len__(self) -> int:
        return sum(map(len, self._spaces.values()))

    def observe(self, space: Hashable, context: Context, ids: Many[int], probs: Many[float]) -> None:
        """Average one more law into the entry of a context.

        Args:
            ids, probs: the likeliest tokens of the target's law behind the context, largest first, at most `width`; zeros are not stored.
        """
        row = self.find(space, context)
        count = 0
        mean: dict[int, float] = {}
        if row is None:
            row = self._insert(space, context)
        else:
            count = int(self._count[row])
            mean = dict(self.entry(row))
        fresh = dict(zip(ids, probs, strict=True))
        # A mean moved by a share of the difference stays where it is, to the bit, when the same law is observed again.
        for token in mean.keys() | fresh.keys():
            old = mean.get(token, 0.0)
            mean[token] = old + (fresh.get(token, 0.0) - old) / (count + 1)
        best = sorted(((-prob, token) for token, prob in mean.items() if prob > 0.0))[: self.width]
        self._ids[row, : len(best)] = [token for _, token in best]
        self._probs[row] = 0.0
        self._probs[row, : len(best)] = [-prob for prob, _ in best]
        self._count[row] = count + 1

    def find(self, space: Hashable, context: Context) -> int | None:
        """Row of a context's entry; counts as a use of it. Rows are valid until the next `observe` or `drop`."""
        contexts = self._spaces.get(space)
        row = None if contexts is None else contexts.pop(context, None)
        if contexts is not None and row is not None:
            contexts[context] = row
        return row

    def count(self, row: int) -> int:
        """How many laws were averaged into an entry."""
        return int(self._count[row])

    def entry(self, row: int) -> list[tuple[int, float]]:
        """Tokens and mean probabilities of an entry, largest first."""
        found = zip(self._ids[row].tolist(), self._probs[row].tolist(), strict=True)
        return [(token, prob) for token, prob in found if prob > 0.0]

    def gather(self, rows: Many[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Entries of several rows, (rows, width) each: token ids, and mean probabilities, zero where an entry holds fewer tokens."""
        return self._ids[rows], self._probs[rows].astype(np.float64)

    def use(self, space: Hashable) -> None:
        """Count as a use of a whole space."""
        contexts = self._spaces.pop(space, None)
        if contexts is not None:
            self._spaces[space] = contexts

    def drop(self, space: Hashable) -> None:
        """Forget a space."""
        self._free.extend(self._spaces.pop(space, {}).values())

    def bytes(self) -> int:
        """Arrays, and an estimate of the index."""
        return self._ids.nbytes + self._probs.nbytes + self._count.nbytes + KEY_BYTES * len(self)

    def _insert(self, space: Hashable, context: Context) -> int:
        if not self._free and self._used == self.capacity:
            self._evict()
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            self._used += 1
            if row == len(self._count):
                self._grow()
        self._probs[row] = 0.0
        self._spaces.setdefault(space, {})[context] = row
        return row

    def _evict(self) -> None:
        space = next(space for space, contexts in self._spaces.items() if contexts)
        contexts = self._spaces[space]
        self._free.append(contexts.pop(next(iter(contexts))))
        self.evictions += 1
        if not contexts:
            del self._spaces[space]

    def _grow(self) -> None:
        more = _rows(min(len(self._count), self.capacity - len(self._count)), self.width)
        self._ids, self._probs, self._count = (
            np.concatenate(pair) for pair in zip((self._ids, self._probs, self._count), more, strict=True)
        )


def _rows(count: int, width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Empty entries: ids, probabilities, counts."""
    return np.zeros((count, width), np.int32), np.zeros((count, width), np.float32), np.zeros(count, np.int32)

"""The hash table variant: flat branches of fixed length in buckets keyed by the last two tokens, as arrays.

After the accelerator port of Lookahead (`flood` in its repository): a bucket is a few consecutive slots, a full bucket is decayed by
halving. Branches are compared as wholes and every slot of a bucket is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from paceline.drafting.lookahead.select import Picked
from paceline.drafting.lookahead.trie import KINDS

ABSENT = -1  # fills branches that ended early
BUCKET_PER_BRANCH = 8
LEVELS = (64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5)  # branches are handed out by descending threshold


class BranchTable:
    """What followed pairs of tokens.

    Args:
        vocabulary: ids are below it.
        length: tokens of a branch.
        branches: most branches asked for at once; a bucket has eight times as many slots.
        size: bytes of all slots.
    """

    def __init__(self, vocabulary: int, length: int, branches: int, size: int) -> None:
        self.vocabulary, self.length = vocabulary, _power_of_two(length)
        self.bucket = _power_of_two(BUCKET_PER_BRANCH * branches)
        slots = max(2 * self.bucket, size // (4 * (self.length + 1)))
        self.freq: npt.NDArray[np.float32] = np.zeros(slots, np.float32)
        self.branch: npt.NDArray[np.int32] = np.full((slots, self.length), ABSENT, np.int32)
        self._queue: deque[tuple[tuple[int, ...], int]] = deque()

    @property
    def waiting(self) -> int:
        """Positions not inserted yet."""
        return len(self._queue)

    def add(self, segment: tuple[int, ...], start: int, stop: int, skip: frozenset[int] = frozenset()) -> None:
        """Note positions of a segment as the second token of a pair, to be inserted later; see `Forest.add`."""
        for at in range(max(1, start), min(stop, len(segment) - 1)):
            if segment[at] not in skip:
                self._queue.append((segment, at))

    def settle(self, limit: int | None = None) -> int:
        """Insert up to `limit` waiting positions (all by default); returns how many were."""
        count = len(self._queue) if limit is None else min(limit, len(self._queue))
        for _ in range(count):
            segment, at = self._queue.popleft()
            self.put(segment[at - 1], segment[at], segment[at + 1 : at + 1 + self.length])
        return count

    def put(self, first: int, second: int, branch: Many[int]) -> None:
        """Count a branch behind a pair; in a full bucket it replaces the first branch that decays below one."""
        slots = self._bucket(first, second)
        freq = self.freq[slots]
        wanted = np.full(self.length, ABSENT, np.int32)
        wanted[: len(branch)] = branch[: self.length]
        equal = np.flatnonzero((freq > 0) & (self.branch[slots] == wanted).all(1))
        if len(equal):
            freq[equal[0]] += 1
            return
        free = np.flatnonzero(freq == 0)
        if not len(free):
            freq *= 0.5
            free = np.flatnonzero(freq < 1)
        if len(free):
            freq[free[0]] = 1
            self.branch[slots][free[0]] = wanted

    def get(self, first: int, second: int, count: int) -> list[tuple[float, list[int]]]:
        """Up to `count` branches with their frequencies, by descending threshold, earlier slots first."""
        slots = self._bucket(first, second)
        freq = self.freq[slots]
        used = np.flatnonzero(freq >= LEVELS[-1])
        if not len(used):
            return []
        level = np.searchsorted(-np.array(LEVELS), -freq[used], side="left")  # 0 is the highest
        best = used[np.argsort(level, kind="stable")[:count]]
        tokens = self.branch[slots][best].tolist()
        return [(float(freq[slot]), [token for token in row if token != ABSENT]) for slot, row in zip(best, tokens, strict=True)]

    def draft(self, first: int, second: int, count: int, budget: int, depth: int) -> Picked:
        """Branches merged into one tree of at most `budget` nodes, in pre-order."""
        picked = Picked()
        place: dict[tuple[int, int], int] = {}
        for freq, branch in self.get(first, second, count):
            above = -1
            kind = min(KINDS // 2 - 1, max(0, int(freq).bit_length() - 1)) * 2 + (freq > 1.5)
            for token in branch[:depth]:
                node = place.get((above, token))
                if node is None:
                    if len(picked) == budget:
                        break
                    node = place[above, token] = picked.add(token, above, kind)
                above = node
        return picked.in_preorder()

    def memory_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.freq.nbytes + self.branch.nbytes

    def _bucket(self, first: int, second: int) -> slice:
        start = (first * self.vocabulary + second) % (len(self.freq) - self.bucket)
        return slice(start, start + self.bucket)


def _power_of_two(number: int) -> int:
    """The largest power of two that is not larger; one at least."""
    return 1 << (max(1, number).bit_length() - 1)

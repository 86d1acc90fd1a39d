"""The n-gram table of STAND: for every context seen, the target's own likeliest next tokens with their mean probabilities.

STAND, arXiv 2506.04708: the largest entries of the target's law are stored *as they are*, not renormalised, and averaged over the
occurrences of a context. Entries are never changed, only replaced, so that the contexts of one position share theirs until one of them is
seen elsewhere too.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from paceline.core.errors import UsageError
from paceline.core.transform import Likeliest

Context = tuple[int, ...]
KEY_BYTES = 170  # of one dictionary entry with a key of three numbers, measured on CPython 3.11
ENTRY_BYTES = 200  # of an entry of its own with no token
TOKEN_BYTES = 68  # a number, a probability, and their places


@dataclass(slots=True)
class Entry:
    """What is known behind a context. Never changed, but making one is not slowed down to enforce that.

    Args:
        ids, probs: likeliest tokens with mean probabilities, largest first, none of them zero.
        count: laws it is the mean of.
    """

    ids: tuple[int, ...]
    probs: tuple[float, ...]
    count: int
    _shares: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @property
    def shares(self) -> tuple[float, ...]:
        """Probabilities among the tokens that are known."""
        if not self._shares:
            whole = 0.0
            for prob in self.probs:  # not `sum`, which rounds differently from one Python to the next
                whole += prob
            self._shares = tuple([prob / whole for prob in self.probs])
        return self._shares

    @property
    def peak(self) -> float:
        """The first of these."""
        return self.shares[0]

    @classmethod
    def of(cls, ids: Many[int], probs: Many[float], count: int = 1) -> Entry:
        """Tokens without probability left out."""
        if 0.0 in probs:
            ids = [token for token, prob in zip(ids, probs, strict=True) if prob > 0.0]
            probs = [prob for prob in probs if prob > 0.0]
        return cls(tuple(ids), tuple(probs), count)

    def averaged(self, other: Entry, width: int) -> Entry:
        """With one more law; `width` tokens are kept."""
        if self.ids == other.ids and self.probs == other.probs:  # to the bit, as laws that are certain mostly are
            return Entry(self.ids, self.probs, self.count + 1)
        count = self.count + 1
        if self.ids == other.ids:
            probs = [old + (new - old) / count for old, new in zip(self.probs, other.probs, strict=True)]
            if all(more > less for more, less in pairwise(probs)):
                return Entry(self.ids, tuple(probs), count)
        fresh = dict(zip(other.ids, other.probs, strict=True))
        # A mean moved by a share of the difference stays where it is, to the bit, when the same law is observed again.
        mean = [(-(old + (fresh.pop(token, 0.0) - old) / count), token) for token, old in zip(self.ids, self.probs, strict=True)]
        mean += [(-prob / count, token) for token, prob in fresh.items()]
        mean.sort()
        best = [pair for pair in mean[:width] if pair[0] < 0.0]
        return Entry(tuple(token for _, token in best), tuple(-prob for prob, _ in best), count)


class Table(Protocol):
    """Entries of several spaces; contexts of one are invisible in the others.

    At most `capacity` contexts are kept, over all spaces. Beyond it, those that were not used for longest go first: of the space that was
    not used for longest, the oldest.
    """

    @property
    def evictions(self) -> int:
        """Contexts forgotten for lack of room."""

    def __len__(self) -> int:
        """Contexts."""

    def learn(self, space: Hashable, text: array[int], begin: int, end: int, laws: Many[Likeliest]) -> None:
        """Average laws into the entries of the contexts they were seen behind, of every length.

        Args:
            text: numbers of four bytes. The first law was seen in front of `text[end]`, the next one a token later, and so on.
            begin: where contexts begin at the earliest.
            laws: largest probability first.
        """

    def longest(self, space: Hashable, context: Context) -> tuple[Entry, int] | None:
        """The entry of the longest end of a context that is known, and its length; counts as a use of it."""

    def contexts(self, space: Hashable) -> list[tuple[Context, Entry]]:
        """Contexts of a space with their entries, the least recently used first."""

    def restore(self, space: Hashable, context: Context, entry: Entry) -> None:
        """Put an entry in place, whatever was known."""

    def use(self, space: Hashable) -> None:
        """Count as a use of a whole space."""

    def drop(self, space: Hashable) -> None:
        """Forget a space."""

    def bytes(self) -> int:
        """What it takes in memory, about."""


class NgramTable:
    """A table in plain Python.

    Args:
        lengths: of the contexts that are kept, falling.
        width: most tokens kept per context (K).
        capacity: most contexts kept.

    Raises:
        UsageError: if one of them is not positive.
    """

    def __init__(self, lengths: tuple[int, ...], width: int, capacity: int) -> None:
        if min(lengths, default=0) < 1 or width < 1 or capacity < 1:
            raise UsageError(f"an n-gram table needs lengths, tokens and contexts above 0, got {lengths}, {width} and {capacity}")
        self.lengths, self.width, self.capacity = lengths, width, capacity
        self.evictions = 0
        self._spaces: dict[Hashable, dict[Context, Entry]] = {}  # both levels from the least to the most recently used; none is empty
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def learn(self, space: Hashable, text: array[int], begin: int, end: int, laws: Many[Likeliest]) -> None:
        for stop, (ids, probs) in enumerate(laws, end):
            contexts = [tuple(text[stop - length : stop]) for length in self.lengths if length <= stop - begin]
            if contexts:
                self._observe(space, contexts, Entry.of(ids[: self.width], probs[: self.width]))

    def _observe(self, space: Hashable, contexts: Many[Context], law: Entry) -> None:
        known = self._spaces.setdefault(space, {})
        before, after = None, law
        for context in contexts:
            entry = known.pop(context, None)
            if entry is None:
                known[context] = law
                self._size += 1
                continue
            if entry is not before:  # contexts that share an entry go on sharing it
                before, after = entry, entry.averaged(law, self.width)
            known[context] = after
        while self._size > self.capacity:
            self._evict()

    def longest(self, space: Hashable, context: Context) -> tuple[Entry, int] | None:
        contexts, size = self._spaces.get(space), len(context)
        if contexts is not None:
            for length in self.lengths:
                if length <= size:
                    end = context[size - length :]
                    entry = contexts.get(end)
                    if entry is not None:
                        del contexts[end]
                        contexts[end] = entry
                        return entry, length
        return None

    def contexts(self, space: Hashable) -> list[tuple[Context, Entry]]:
        return list(self._spaces.get(space, {}).items())

    def restore(self, space: Hashable, context: Context, entry: Entry) -> None:
        if len(context) not in self.lengths:  # nobody would find it
            return
        known = self._spaces.setdefault(space, {})
        self._size += known.pop(context, None) is None
        known[context] = entry
        while self._size > self.capacity:
            self._evict()

    def use(self, space: Hashable) -> None:
        contexts = self._spaces.pop(space, None)
        if contexts is not None:
            self._spaces[space] = contexts

    def drop(self, space: Hashable) -> None:
        self._size -= len(self._spaces.pop(space, {}))

    def bytes(self) -> int:
        """An estimate: the index, and entries that are counted once however many contexts share them."""
        own = {id(entry): len(entry.ids) for contexts in self._spaces.values() for entry in contexts.values()}
        return KEY_BYTES * self._size + ENTRY_BYTES * len(own) + TOKEN_BYTES * sum(own.values())

    def _evict(self) -> None:
        space, contexts = next(iter(self._spaces.items()))
        del contexts[next(iter(contexts))]
        self._size -= 1
        self.evictions += 1
        if not contexts:
            del self._spaces[space]

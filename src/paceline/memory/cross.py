"""Encoded sources: what cross-attention reads, held once per distinct source and freed with its last reader. Never written, never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import CrossView
from paceline.memory.allocator import OwnershipError
from paceline.memory.ledger import Ledger

Source = tuple[int, ...]
CATEGORY = "cross_kv"


@dataclass(slots=True, eq=False)
class CrossMemory:
    """One encoded source and how many sequences read it; a `core.batch.CrossView`. Made by `CrossBook`.

    Args:
        book: where it is held.
        source: token ids.
        view: keys and values.
        bytes: of them.
        readers: sequences that hold it.
    """

    book: CrossBook
    source: Source
    view: CrossView
    bytes: int
    readers: int = 1

    @property
    def keys(self) -> Sequence[Float[Tensor, "source kv_heads head_dim"]]:
        """Keys, layer by layer."""
        return self.view.keys

    @property
    def values(self) -> Sequence[Float[Tensor, "source kv_heads head_dim"]]:
        """Values, layer by layer."""
        return self.view.values

    def retain(self) -> CrossMemory:
        """One more reader."""
        self.readers += 1
        return self

    def release(self) -> None:
        """One reader less; the last one frees it.

        Raises:
            OwnershipError: if nobody reads it any more.
        """
        if self.readers < 1:
            raise OwnershipError(f"the encoded source of {len(self.source)} tokens was released more often than it was retained")
        self.readers -= 1
        if not self.readers:
            self.book.drop(self)


@dataclass(slots=True)
class CrossBook:
    """The encoded sources that running sequences read, by their token ids.

    Args:
        ledger: where their bytes are booked, under `cross_kv`.
    """

    ledger: Ledger
    held: dict[Source, CrossMemory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger.add(CATEGORY, 0)  # the row exists before the first source does

    def find(self, source: Source) -> CrossMemory | None:
        """A source that is held already, with one more reader."""
        found = self.held.get(source)
        return None if found is None else found.retain()

    def keep(self, source: Source, view: CrossView) -> CrossMemory:
        """Hold a freshly encoded source for its first reader."""
        size = sum(tensor.nbytes for tensor in (*view.keys, *view.values))
        self.ledger.add(CATEGORY, size)
        self.held[source] = CrossMemory(self, source, view, size)
        return self.held[source]

    def drop(self, memory: CrossMemory) -> None:
        """`CrossMemory.release` only: forget a source without readers."""
        del self.held[memory.source]
        self.ledger.sub(CATEGORY, memory.bytes)

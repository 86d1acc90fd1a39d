"""What the loop, the scheduler and drafters need of any memory; slot memory and the dense cache both have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from paceline.core.batch import MemoryView
from paceline.memory.cross import CrossMemory
from paceline.memory.ledger import Ledger
from paceline.memory.pool import KVLayout


class SequenceStore(MemoryView, Protocol):
    """What is remembered of one sequence. Rows of a forward are scratch behind `length` until a commit keeps some of them.

    `cross` is the encoded source of an encoder-decoder's sequence, released with it; `None` in other models.
    """

    cross: CrossMemory | None

    def reserve(self, rows: int) -> None:
        """Make sure that `rows` rows can be written behind the committed ones.

        Raises:
            OutOfSlots: if there is no room; nothing changes.
        """

    def commit(self, rows: Sequence[int]) -> None:
        """Keep the scratch rows at these offsets, strictly increasing, and drop the others."""

    def truncate(self, length: int) -> None:
        """Forget committed tokens from `length` on, and all scratch."""

    def fork(self) -> SequenceStore:
        """A second sequence with the same committed tokens."""

    def bytes(self) -> int:
        """Bytes of the committed tokens."""


class TokenMemory(Protocol):
    """Where sequences live. Handles go back to the memory they came from."""

    @property
    def layout(self) -> KVLayout:
        """What a token takes."""

    @property
    def ledger(self) -> Ledger:
        """Where bytes are booked."""

    @property
    def keys(self) -> Sequence[Tensor]:
        """Pools of each layer, (slots, kv_heads, head_dim)."""

    @property
    def values(self) -> Sequence[Tensor]:
        """Likewise."""

    @property
    def total_slots(self) -> int:
        """Tokens it can hold."""

    @property
    def free_slots(self) -> int:
        """Tokens it can still take without forgetting anything."""

    def can_admit(self, tokens: int) -> bool:
        """Whether that many fit beside what running sequences hold and were promised."""

    def admit(self, ids: Sequence[int], reserve: int = 0) -> Any:
        """A new sequence, a `SequenceStore` of this memory's kind.

        Raises:
            OutOfSlots: if `ids` do not fit now.
        """

    def release(self, sequence: Any, ids: Sequence[int] | None = None) -> None:
        """End a sequence's memory; `ids` are its committed tokens, for memories that keep prefixes."""

"""Peers: other engines on the same weights, behind one interface, so that every benchmark compares tokens and times alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from paceline.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One greedy generation.

    Args:
        token_ids: exactly as many as were asked for; end-of-sequence tokens are ordinary ids here.
        ttft: seconds from the call to the first token.
        decode_seconds: seconds from the first token to the last.
        forwards: forwards of the target model, that of the prompt included.
    """

    token_ids: list[int]
    ttft: float
    decode_seconds: float
    forwards: int

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, the prompt left out; 0 for a single token, which tells nothing of it."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens after the first per forward after the prompt's; 1 is plain decoding."""
        return (len(self.token_ids) - 1) / (self.forwards - 1) if self.forwards > 1 else 0.0


class Peer(Protocol):
    """An engine to compare with. Greedy, batch 1, prompts as ids, end-of-sequence ignored, so that tokens compare exactly."""

    @property
    def name(self) -> str:
        """How tables call it."""

    def available(self) -> str | None:
        """`None` if it can run here, else the reason why not."""

    def load(self, folder: Path, dtype: str, threads: int) -> None:
        """Load a checkpoint folder.

        Args:
            folder: in the layout of transformers.
            dtype: `float32` or `bfloat16`.
            threads: how many the engine may use.
        """

    def generate(self, prompt_ids: Sequence[int], max_tokens: int) -> PeerRun:
        """Generate exactly `max_tokens` tokens."""

    def forward_cost(self, rows: int, context: int) -> float:
        """Median seconds of a forward of `rows` new rows behind `context` remembered ones, logits of all rows included."""

    def close(self) -> None:
        """Free the model."""


def filler_ids(count: int, vocabulary: int, start: int = 0) -> list[int]:
    """Token ids for timing, where only their number matters: spread over the vocabulary so that embeddings are not all one cache line."""
    return [(7919 * (start + index) + 13) % vocabulary for index in range(count)]


def require(loaded: object, name: str) -> None:
    """Raises: UsageError: if a peer is used before `load`."""
    if loaded is None:
        raise UsageError(f"peer {name!r} has no model; call load(folder, dtype, threads) first")

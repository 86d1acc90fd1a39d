"""Plain decoding: the drafter that never drafts."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits


@dataclass(frozen=True, slots=True)
class NoDraftConfig:
    """No options."""


class NoDraft:
    """Proposes the empty tree, always."""

    Config = NoDraftConfig
    taps: TapRequest = NO_TAPS

    @classmethod
    def build(cls, config: NoDraftConfig, context: DraftContext) -> NoDraft:
        """A drafter for this context; needs nothing from it."""
        return cls()

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Roots alone."""
        return [TokenTree.chain(sequence.tokens[-1]) for sequence in sequences]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Nothing to learn."""

    def release(self, sequence: Sequence) -> None:
        """Nothing to forget."""

    def memory_bytes(self) -> int:
        """Zero."""
        return 0

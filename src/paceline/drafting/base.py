"""The contract of every drafter: propose trees for running sequences, learn from verdicts, forget finished ones."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from paceline.core.batch import TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict

if TYPE_CHECKING:
    from paceline.core.batch import ForwardBatch, ForwardResult


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """How large a draft may be for one sequence in this step.

    Args:
        nodes: most nodes below the root (0 asks for the empty draft).
        depth: longest path below the root, so that a step cannot overshoot `max_tokens` or the context.
    """

    nodes: int
    depth: int


class ForwardRunner(Protocol):
    """Weights bound to a memory: what a drafter with a model of its own runs."""

    @property
    def memory(self) -> Any:
        """Slot memory with `admit`, `release`."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Run rows; see `ForwardBatch`."""

    def probe(self, rows: int) -> float:
        """Seconds of a forward with `rows` rows on this device, now."""


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What the house offers a drafter when it is built.

    Args:
        vocabulary: size of the target's vocabulary.
        eos: ids after which nothing needs to be drafted.
        draft: runner of the draft model, where the user named one.
        probe: measures the seconds of a target forward with n rows on this device, now.
    """

    vocabulary: int
    eos: frozenset[int]
    probe: Callable[[int], float]
    draft: ForwardRunner | None = None


class Drafter(Protocol):
    """Who proposes. A drafter owns its state, keyed by `sequence.uid`; the loop owns everything else."""

    @property
    def taps(self) -> TapRequest:
        """What it wants back from every target forward."""

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """One tree per sequence, rooted at its pending token, within its limits."""

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Learn from what was accepted. `sequences` already hold the emitted tokens; called before finished ones are released.

        `trees` are the drafter's own. One that taps logits gets the trees as they were judged, composed with others' or not: the rows of
        `taps.logits` are theirs.
        """

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that finished, was cancelled or was preempted."""

    def memory_bytes(self) -> int:
        """Bytes held for drafts (draft KV, tables)."""

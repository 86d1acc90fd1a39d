"""The contract of every drafter: propose trees for running sequences, learn from verdicts, forget finished ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict

if TYPE_CHECKING:
    from paceline.core.batch import ForwardBatch, ForwardResult
    from paceline.models.decoder import Decoder

USUAL_DRAFT = 64  # nodes that a method is given room for if its options do not say how many it wants


def largest_draft(configs: Many[Any]) -> int:
    """Most draft nodes per sequence and step that methods with these options may want together.

    Args:
        configs: one `Config` per method that is composed; each may say with a property `most_draft` how many nodes it will ever want.
    """
    return sum(int(getattr(config, "most_draft", USUAL_DRAFT)) for config in configs)


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
        vocabularies: ids of the pieces of sources and of targets, where an encoder-decoder has a vocabulary for each; else `None`.
        network: the draft network that the user named, where it is no decoder (see `engine.draft_network`).
        coupled: whether samples are judged with the numbers of plain sampling; who draws with the same numbers is accepted more often.
        target: the target's network, whose embedding table and head small networks may read; never to be modified.
        view: makes a runner over the target's weights with a memory of its own, for so many tokens: for drafts by the target itself.
    """

    vocabulary: int
    eos: frozenset[int]
    probe: Callable[[int], float]
    draft: ForwardRunner | None = None
    vocabularies: tuple[Mapping[str, int], Mapping[str, int]] | None = None
    network: Any = None
    coupled: bool = False
    target: Decoder | None = None
    view: Callable[[int], ForwardRunner] | None = None


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
        `taps.logits` and of `taps.likeliest` are theirs.
        """

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that finished, was cancelled or was preempted."""

    def memory_bytes(self) -> int:
        """Bytes held for drafts (draft KV, tables)."""


class ReadsPrompts(Protocol):
    """A drafter whose taps ask for `prompt_logits`."""

    def observe_prompt(self, sequence: Sequence, start: int, logits: Float[Tensor, "rows vocabulary"]) -> None:
        """What the target said at `sequence.tokens[start:start + rows]`, which were read before a tree: mostly the prompt."""


@runtime_checkable
class Remembers(Protocol):
    """A drafter that keeps text, or laws behind it, beyond the request they came from."""

    def forget(self) -> None:
        """Forget everything learned from requests, as if just built; what was measured of the device stays. Only while nothing runs."""


def memories(drafter: Drafter) -> list[Remembers]:
    """The drafter, or those of its parts, that remember beyond a request."""
    return [part for part in getattr(drafter, "parts", [drafter]) if isinstance(part, Remembers)]

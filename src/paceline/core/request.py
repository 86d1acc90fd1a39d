"""What a user asked for, and how far a sequence answering it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral

from paceline.core.errors import UsageError
from paceline.core.rng import key
from paceline.core.sampling import Sampling

GREEDY = Sampling()


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # EOS, a stop id or a stop string
    LENGTH = "length"  # max_tokens, or the model's context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with its settings and limits.

    Args:
        ids: prompt token ids; at least one.
        sampling: how tokens are chosen.
        max_tokens: most tokens to emit, exact.
        stop: strings that end the output; they are not part of it.
        stop_ids: token ids that end the output (EOS of the model included by the engine unless `ignore_eos`).
        ignore_eos: keep going past the model's EOS.
        priority: larger runs first and is preempted last.
        tenant: on whose behalf; drafters that remember across requests can keep tenants apart.
        source: for encoder-decoders, the token ids that the encoder reads; `ids` are then what the target begins with.

    Raises:
        UsageError: for an empty prompt, or a limit that is not a positive integer.
    """

    ids: tuple[int, ...]
    sampling: Sampling = GREEDY
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    priority: int = 0
    tenant: str = ""
    source: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError("the prompt is empty; give at least one token (a BOS token, for instance)")
        if not isinstance(self.max_tokens, Integral) or self.max_tokens < 1:
            raise UsageError(f"max_tokens={self.max_tokens} must be an integer of at least 1")

    @property
    def prompt(self) -> tuple[int, ...]:
        """What was asked: the source where there is one, else `ids`."""
        return self.source or self.ids


@dataclass(slots=True)
class SequenceStats:
    """Counters of one sequence; times are seconds since the request arrived."""

    forwards: int = 0  # target forwards that judged a tree of this sequence
    prefill_forwards: int = 0
    drafted: int = 0  # nodes proposed below the root
    accepted: int = 0
    drafted_by_depth: list[int] = field(default_factory=list)  # steps that offered at least one node at depth d+1
    accepted_by_depth: list[int] = field(default_factory=list)  # steps that accepted a node at depth d+1
    cached_prompt_tokens: int = 0
    preemptions: int = 0
    rows: int = 0  # rows computed for this sequence, where the loop counts them (denoising)
    token_times: list[float] = field(default_factory=list)  # one per emission step
    token_counts: list[int] = field(default_factory=list)  # tokens emitted in that step

    def record(self, offered_depth: int, drafted: int, accepted: int) -> None:
        """Count one judged tree of the given depth and size."""
        self.forwards += 1
        self.drafted += drafted
        self.accepted += accepted
        while len(self.drafted_by_depth) < offered_depth:
            self.drafted_by_depth.append(0)
            self.accepted_by_depth.append(0)
        for depth in range(offered_depth):
            self.drafted_by_depth[depth] += 1
        for depth in range(accepted):
            self.accepted_by_depth[depth] += 1


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """A request while it runs. Identity is the object; `uid` names it in drafters' and memory's books.

    `tokens` holds prompt and output; in an encoder-decoder, the target alone. The last token is *pending*: emitted (or the end of the
    prompt), not yet in memory.
    """

    uid: int
    request: Request
    sample: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    canvas: list[int] | None = None  # everything decided behind the prompt, where the loop denoises; set at the end
    stats: SequenceStats = field(default_factory=SequenceStats)

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.request.ids)

    @property
    def seed(self) -> int:
        """Key of this sample's randomness; sample 0 of a request uses the request's seed itself."""
        base = self.request.sampling.seed
        return base if self.sample == 0 else key(base, self.sample)

    @property
    def prompt_length(self) -> int:
        return len(self.request.ids)

    @property
    def history(self) -> list[int]:
        """Everything that was read or written: `tokens`, behind the source where there is one."""
        return [*self.request.source, *self.tokens] if self.request.source else self.tokens

    @property
    def output(self) -> list[int]:
        """Tokens emitted so far."""
        return self.tokens[len(self.request.ids) :]

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.request.max_tokens - (len(self.tokens) - len(self.request.ids))

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

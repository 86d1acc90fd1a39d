"""What a user gets back: text, ids, and the numbers that say how it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from paceline.core.request import FinishReason, Sequence
from paceline.core.verdict import TokenLogprob


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers of one output.

    Args:
        prompt_tokens, output_tokens, cached_prompt_tokens: counts.
        forwards: target forwards that decided tokens of this output (a prompt read in chunks adds `prefill_forwards`).
        drafted, accepted: draft nodes proposed, and accepted.
        acceptance_by_depth: share of steps that accepted a node at depth d among those that offered one.
        offered_by_depth, accepted_by_depth: the counts behind it.
        rows: rows computed, where the loop counts them (denoising).
        runs: tokens emitted by each forward; all but the last of a run were drafted.
        times: when they were, in seconds since arrival.
        ttft: seconds from arrival to the first token. tpot: median seconds per token after that.
        prefill_seconds, decode_seconds: before and after the first token.
        peak_bytes: largest live bytes by category while this output was made, of the whole engine.
    """

    prompt_tokens: int
    output_tokens: int
    cached_prompt_tokens: int
    forwards: int
    prefill_forwards: int
    drafted: int
    accepted: int
    acceptance_by_depth: tuple[float, ...]
    offered_by_depth: tuple[int, ...]
    accepted_by_depth: tuple[int, ...]
    runs: tuple[int, ...]
    times: tuple[float, ...]
    ttft: float
    tpot: float
    prefill_seconds: float
    decode_seconds: float
    preemptions: int
    peak_bytes: dict[str, int]
    rows: int = 0

    @property
    def tokens_per_forward(self) -> float:
        """Output tokens per deciding target forward; 1 for plain decoding."""
        return self.output_tokens / self.forwards if self.forwards else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of drafted nodes; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed behind the first emission; 0 when there was only one."""
        later = self.output_tokens - (self.runs[0] if self.runs else 0)
        return later / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Fields and derived numbers, ready for JSON."""
        derived = ("tokens_per_forward", "acceptance_rate", "tokens_per_second")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    @classmethod
    def of(cls, sequence: Sequence, peak_bytes: dict[str, int]) -> Stats:
        """Read off a finished sequence."""
        counts = sequence.stats
        times = counts.token_times
        gaps: list[float] = []
        for before, after, tokens in zip(times, times[1:], counts.token_counts[1:], strict=False):
            gaps.extend([(after - before) / tokens] * tokens)
        return cls(
            prompt_tokens=len(sequence.request.prompt),
            output_tokens=len(sequence.output),
            cached_prompt_tokens=counts.cached_prompt_tokens,
            forwards=counts.forwards,
            prefill_forwards=counts.prefill_forwards,
            drafted=counts.drafted,
            accepted=counts.accepted,
            acceptance_by_depth=tuple(a / d for a, d in zip(counts.accepted_by_depth, counts.drafted_by_depth, strict=True)),
            offered_by_depth=tuple(counts.drafted_by_depth),
            accepted_by_depth=tuple(counts.accepted_by_depth),
            runs=tuple(counts.token_counts),
            times=tuple(times),
            ttft=times[0] if times else 0.0,
            tpot=median(gaps) if gaps else 0.0,
            prefill_seconds=times[0] if times else 0.0,
            decode_seconds=times[-1] - times[0] if times else 0.0,
            preemptions=counts.preemptions,
            peak_bytes=dict(peak_bytes),
            rows=counts.rows,
        )


@dataclass(frozen=True, slots=True)
class Output:
    """The answer to one prompt.

    Args:
        text: decoded output, cut before a stop string or a stop id; empty without a tokenizer.
        token_ids: output ids, the one that ended it included.
        finish_reason: why it ended.
        logprobs: one entry per token, if requested.
        stats: how it was made.
        samples: with `n > 1`, all samples; this output repeats the first of them.
        canvas: denoising: every position behind the prompt as it was decoded, ends of text and what follows them included.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    stats: Stats
    samples: list[Output] = field(default_factory=list)
    canvas: list[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        record: dict[str, Any] = {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": str(self.finish_reason),
            "stats": self.stats.to_dict(),
        }
        if self.logprobs is not None:
            record["logprobs"] = [asdict(entry) for entry in self.logprobs]
        if self.canvas is not None:
            record["canvas"] = self.canvas
        if self.samples:
            record["samples"] = [sample.to_dict() for sample in self.samples]
        return record


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: the tokens of one forward.

    Args:
        text: newly settled text.
        token_ids: new ids.
        drafted: how many of them were drafted and accepted.
        output: the whole answer, on the last chunk only.
        filled: denoising: (index in the answer, id) of every position decided by this forward.
    """

    text: str
    token_ids: tuple[int, ...]
    drafted: int
    output: Output | None = None
    filled: tuple[tuple[int, int], ...] = ()

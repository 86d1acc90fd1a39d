"""The bench runner: methods and peers on one workload, interleaved repeat by repeat, so that ratios hold while the machine drifts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from paceline.bench.peers_base import Peer
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.output import Output

Prompts = Sequence[tuple[int, ...]]
PLAIN = "none"
REST = 0.05  # seconds before each measurement: worker threads of the contender before stop spinning


@dataclass(frozen=True, slots=True)
class Sample:
    """One repeat of one contender: all prompts of a workload, in groups of the batch size.

    Args:
        token_ids: of every prompt.
        decode_tokens, decode_seconds: tokens emitted after every sequence of a group had its first, and the time that took.
        seconds: wall time, prompts included.
        ttft, tpot: seconds to the first token, and per token after it, of every prompt.
        forwards: forwards that decided tokens, over all sequences.
        phases: seconds per phase of the loop; empty for peers.
        offered, accepted: drafted nodes by depth, and accepted ones, as counted steps.
        drafted, kept: draft nodes in all, and accepted ones.
        peak_bytes: by category.
    """

    token_ids: list[list[int]]
    decode_tokens: int
    decode_seconds: float
    seconds: float
    ttft: list[float]
    tpot: list[float]
    forwards: int
    phases: dict[str, float] = field(default_factory=dict)
    offered: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    drafted: int = 0
    kept: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens emitted in all."""
        return sum(map(len, self.token_ids))

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, prompts left out."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Contender(Protocol):
    """Something that decodes."""

    @property
    def name(self) -> str:
        """In tables and records."""

    def measure(self, prompts: Prompts, sampling: Sampling, max_tokens: int, batch: int) -> Sample:
        """Decode every prompt to exactly `max_tokens` tokens."""


@dataclass(frozen=True, slots=True)
class MethodContender:
    """One of our methods.

    Args:
        name: the method string.
        llm: an engine with it. Without prefix cache, or repeated prompts would cost nothing.
    """

    name: str
    llm: LLM

    def measure(self, prompts: Prompts, sampling: Sampling, max_tokens: int, batch: int) -> Sample:
        """See `Contender.measure`."""
        before = dict(self.llm.engine.phases.seconds)
        groups: list[list[Output]] = []
        start = time.perf_counter()
        for at in range(0, len(prompts), batch):
            ids = [list(prompt) for prompt in prompts[at : at + batch]]
            groups.append(self.llm.generate(ids, sampling, max_tokens, ignore_eos=True))
        seconds = time.perf_counter() - start
        outputs = [output for group in groups for output in group]
        spans = [decode_span(group) for group in groups]
        stats = [output.stats for output in outputs]
        return Sample(
            token_ids=[output.token_ids for output in outputs],
            decode_tokens=sum(tokens for tokens, _ in spans),
            decode_seconds=sum(taken for _, taken in spans),
            seconds=seconds,
            ttft=[each.ttft for each in stats],
            tpot=[each.decode_seconds / max(1, each.output_tokens - each.runs[0]) for each in stats],
            forwards=sum(each.forwards for each in stats),
            phases={phase: total - before[phase] for phase, total in self.llm.engine.phases.seconds.items()},
            offered=add_counts([each.offered_by_depth for each in stats]),
            accepted=add_counts([each.accepted_by_depth for each in stats]),
            drafted=sum(each.drafted for each in stats),
            kept=sum(each.accepted for each in stats),
            peak_bytes={name: max(each.peak_bytes.get(name, 0) for each in stats) for name in stats[0].peak_bytes},
        )


def decode_span(group: Sequence[Output]) -> tuple[int, float]:
    """Tokens a batch emitted after its last sequence had begun, and the time that took: pure decoding, whatever prefill cost."""
    begun = max(output.stats.times[0] for output in group)
    tokens = sum(count for output in group for count, at in zip(output.stats.runs, output.stats.times, strict=True) if at > begun)
    return tokens, max(output.stats.times[-1] for output in group) - begun


def add_counts(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Columnwise sums of rows of different length."""
    longest = max(map(len, rows), default=0)
    return tuple(sum(row[at] for row in rows if at < len(row)) for at in range(longest))


@dataclass(frozen=True, slots=True)
class PeerContender:
    """Another engine on the same weights; greedy, one prompt at a time.

    Args:
        peer: loaded.
    """

    peer: Peer

    @property
    def name(self) -> str:
        """The peer's."""
        return self.peer.name

    def measure(self, prompts: Prompts, sampling: Sampling, max_tokens: int, batch: int) -> Sample:
        """See `Contender.measure`."""
        start = time.perf_counter()
        runs = [self.peer.generate(list(prompt), max_tokens) for prompt in prompts]
        seconds = time.perf_counter() - start
        return Sample(
            token_ids=[list(run.token_ids) for run in runs],
            decode_tokens=sum(len(run.token_ids) - 1 for run in runs),
            decode_seconds=sum(run.decode_seconds for run in runs),
            seconds=seconds,
            ttft=[run.ttft for run in runs],
            tpot=[run.decode_seconds / max(1, len(run.token_ids) - 1) for run in runs],
            forwards=sum(run.forwards for run in runs),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured together: every contender on the same prompts.

    Args:
        workload: its name.
        prompts, sampling, max_tokens, batch: what every contender is given.
        repeats: timed rounds, after one untimed.
    """

    workload: str
    prompts: Prompts
    sampling: Sampling
    max_tokens: int
    batch: int
    repeats: int


def run_cell(cell: Cell, contenders: Sequence[Contender], on_sample: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Measure every contender once per round, starting each round with another one; the first round warms up.

    Returns:
        One JSON-ready row per contender.
    """
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for turn in range(cell.repeats + 1):
        first = turn % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            time.sleep(REST)
            sample = contender.measure(cell.prompts, cell.sampling, cell.max_tokens, cell.batch)
            if turn:
                samples[contender.name].append(sample)
            if on_sample is not None:
                on_sample(contender.name)
    plain = samples.get(PLAIN)
    return [row_of(cell, name, taken, plain) for name, taken in samples.items()]


def row_of(cell: Cell, name: str, samples: Sequence[Sample], plain: Sequence[Sample] | None) -> dict[str, Any]:
    """The measurements of one contender as a row: medians over repeats; speed-up is the median of ratios within a round."""
    last = samples[-1]
    tpot = sorted(value for sample in samples for value in sample.tpot)
    row: dict[str, Any] = {
        "workload": cell.workload,
        "batch": cell.batch,
        "method": name,
        "prompts": len(cell.prompts),
        "prompt_tokens": sum(map(len, cell.prompts)),
        "output_tokens": last.tokens,
        "repeats": len(samples),
        "tokens_per_second": median(sample.tokens_per_second for sample in samples),
        "tokens_per_second_samples": [sample.tokens_per_second for sample in samples],
        "tokens_per_second_with_prompt": median(sample.tokens / sample.seconds for sample in samples),
        "tokens_per_forward": last.tokens / last.forwards if last.forwards else 0.0,
        "drafted": last.drafted,
        "accepted": last.kept,
        "acceptance_by_depth": [kept / offered for kept, offered in zip(last.accepted, last.offered, strict=True)],
        "ttft_ms": 1e3 * median(value for sample in samples for value in sample.ttft),
        "tpot_p50_ms": 1e3 * median(tpot),
        "tpot_p95_ms": 1e3 * tpot[min(len(tpot) - 1, int(0.95 * len(tpot)))],
        "peak_bytes": last.peak_bytes,
        "phase_shares": phase_shares(samples),
    }
    if plain is not None:
        ratios = [sample.tokens_per_second / base.tokens_per_second for sample, base in zip(samples, plain, strict=True)]
        row |= {"speedup": median(ratios), "speedup_lowest": min(ratios), "speedup_highest": max(ratios)}
        same = [mine == theirs for mine, theirs in zip(last.token_ids, plain[-1].token_ids, strict=True)]
        row |= {"identical_outputs": sum(same)}
    return row


def phase_shares(samples: Sequence[Sample]) -> dict[str, float]:
    """Share of each phase of the loop in the time of all repeats; `overhead` is what is neither drafting nor the target's forward."""
    names = samples[0].phases
    totals = {name: sum(sample.phases[name] for sample in samples) for name in names}
    whole = sum(totals.values())
    if not whole:
        return {}
    shares = {name: total / whole for name, total in totals.items()}
    return shares | {"overhead": 1 - shares.get("forward", 0.0) - shares.get("draft", 0.0)}

"""The bench runner: methods and peers on one workload, interleaved repeat by repeat, so that ratios hold while the machine drifts."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Literal, Protocol

from paceline.bench.peers_base import Peer
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.drafting.base import memories
from paceline.engine.llm import LLM
from paceline.engine.output import Output

Prompts = Sequence[tuple[int, ...]]
Memory = Literal["cold", "warm", "replay"]
PLAIN = "none"
REST = 0.05  # seconds before each measurement: worker threads of the contender before stop spinning


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured together: every contender on the same prompts.

    Args:
        workload: its name.
        prompts, sampling, max_tokens: what every contender is given.
        batch: sequences decoded together: of different prompts, or samples of one prompt.
        repeats: timed rounds, after one untimed.
        samples: trajectories of every prompt, each with a seed of its own.
        others: different prompts of the same kind, answered before to warm memories up.
        coupled: whether sampled output is to equal plain decoding's token for token.
    """

    workload: str
    prompts: Prompts
    sampling: Sampling
    max_tokens: int
    batch: int
    repeats: int
    samples: int = 1
    others: Prompts = ()
    coupled: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One repeat of one contender: all prompts of a workload, in groups of the batch size.

    Args:
        token_ids: of every output.
        decode_tokens, decode_seconds: tokens emitted after every sequence of a group had its first, and the time that took.
        seconds: wall time, prompts included.
        ttft, tpot: seconds to the first token, and per token after it, of every output.
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

    def measure(self, cell: Cell) -> Sample:
        """Decode every prompt of the cell to exactly `max_tokens` tokens."""


@dataclass(frozen=True, slots=True)
class MethodContender:
    """One of our methods.

    Args:
        method: the method string.
        llm: an engine with it. Without prefix cache, or repeated prompts would cost nothing. Contenders may share one.
        memory: what the method remembers when a round begins. `cold`: nothing. `warm`: the answers to the cell's other prompts, given
            untimed before the round. `replay`: whatever earlier rounds left, the answers to the very same prompts included.
    """

    method: str
    llm: LLM
    memory: Memory = "cold"

    @property
    def name(self) -> str:
        """See `label`."""
        return label(self.method, self.memory)

    def measure(self, cell: Cell) -> Sample:
        """See `Contender.measure`."""
        if self.memory != "replay" and not self.llm.denoises:  # diffusion models have no drafter to remember anything
            for part in memories(self.llm.engine.drafter):
                part.forget()
        if self.memory == "warm":
            decode(self.llm, cell.others, cell)
        before = dict(self.llm.engine.phases.seconds)
        start = time.perf_counter()
        groups = decode(self.llm, cell.prompts, cell)
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


def label(method: str, memory: Memory) -> str:
    """A method's name in tables: with what it remembers, where that is something."""
    return method if memory == "cold" else f"{method} ({memory})"


def decode(llm: LLM, prompts: Prompts, cell: Cell) -> list[list[Output]]:
    """All outputs, in the groups that were decoded together: several prompts, or several samples of one."""
    if cell.samples > 1:
        return [
            group for prompt in prompts for group in draw_samples(llm, prompt, cell.sampling, cell.max_tokens, cell.samples, cell.batch)
        ]
    groups = [[list(prompt) for prompt in prompts[at : at + cell.batch]] for at in range(0, len(prompts), cell.batch)]
    return [llm.generate(ids, cell.sampling, cell.max_tokens, ignore_eos=True) for ids in groups]


def draw_samples(llm: LLM, prompt: Sequence[int], sampling: Sampling, max_tokens: int, samples: int, batch: int) -> list[list[Output]]:
    """All trajectories of one prompt.

    Args:
        batch: how many are decoded together; 1 draws them one after the other.

    Returns:
        One list per batch, in the order they were drawn.
    """
    groups = []
    for first in range(0, samples, batch):
        seeded = replace(sampling, n=min(batch, samples - first), seed=key(sampling.seed, first))
        (output,) = llm.generate([list(prompt)], seeded, max_tokens, ignore_eos=True)
        groups.append(output.samples or [output])
    return groups


def tokens_per_forward_by_trajectory(groups: Sequence[Sequence[list[Output]]]) -> list[float]:
    """Tokens per forward of the first, second, .. trajectory, over all prompts.

    Args:
        groups: `draw_samples` of each prompt.
    """
    flat = [[output for group in prompt for output in group] for prompt in groups]
    columns = list(zip(*flat, strict=True))
    return [sum(output.stats.output_tokens for output in column) / sum(output.stats.forwards for output in column) for column in columns]


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

    def measure(self, cell: Cell) -> Sample:
        """See `Contender.measure`."""
        start = time.perf_counter()
        runs = [self.peer.generate(list(prompt), cell.max_tokens) for prompt in cell.prompts]
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


@contextmanager
def nothing_old_collected() -> Iterator[None]:
    """Keep the garbage collector away from all that exists by now. Walking it takes a tenth of a second, at whoever's turn it is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_cell(cell: Cell, contenders: Sequence[Contender], on_sample: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Measure every contender once per round, starting each round with another one; the first round warms up.

    Returns:
        One JSON-ready row per contender.
    """
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for turn in range(cell.repeats + 1):
        first = turn % len(contenders)
        with nothing_old_collected():
            for contender in (*contenders[first:], *contenders[:first]):
                time.sleep(REST)
                sample = contender.measure(cell)
                if turn:
                    samples[contender.name].append(sample)
                if on_sample is not None:
                    on_sample(contender.name)
    plain = samples.get(PLAIN)
    memory = {contender.name: getattr(contender, "memory", "cold") for contender in contenders}
    return [row_of(cell, name, taken, plain) | {"memory": memory[name]} for name, taken in samples.items()]


def row_of(cell: Cell, name: str, samples: Sequence[Sample], plain: Sequence[Sample] | None) -> dict[str, Any]:
    """The measurements of one contender as a row: medians over repeats; speed-up is the median of ratios within a round."""
    last = samples[-1]
    tpot = sorted(value for sample in samples for value in sample.tpot)
    row: dict[str, Any] = {
        "workload": cell.workload,
        "batch": cell.batch,
        "method": name,
        "prompts": len(cell.prompts),
        "samples": cell.samples,
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
        if cell.sampling.greedy or cell.coupled:
            row["identical_outputs"] = sum(mine == theirs for mine, theirs in zip(last.token_ids, plain[-1].token_ids, strict=True))
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

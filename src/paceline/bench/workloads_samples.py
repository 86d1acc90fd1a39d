"""Workloads of test-time scaling: many samples of one prompt, one after the other or together, as best-of-N and voting draw them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paceline.bench.runner import Prompts, Sample, add_counts, decode_span
from paceline.bench.workloads import WORKLOADS, Workload
from paceline.core.errors import UsageError
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.output import Output

REASONING = Sampling(temperature=0.6, top_p=0.95)


@dataclass(frozen=True, slots=True)
class SamplesWorkload:
    """Several trajectories of every prompt.

    Args:
        name: as on the command line.
        description: one line.
        prompts: where the prompts come from.
        samples: trajectories per prompt.
        sampling: how they are drawn; each with a seed of its own.
    """

    name: str
    description: str
    prompts: Workload
    samples: int
    sampling: Sampling = REASONING


SAMPLES_WORKLOADS: dict[str, SamplesWorkload] = {
    workload.name: workload
    for workload in (
        *(SamplesWorkload(f"best-of-{n}", f"{n} samples of each held-out file", WORKLOADS["completion"], n) for n in (4, 8, 16)),
        SamplesWorkload("best-of-8-structured", "8 samples of tables and records", WORKLOADS["structured"], 8),
    )
}


def find_samples_workloads(names: Sequence[str] | None) -> list[SamplesWorkload]:
    """The workloads called `names`, all by default.

    Raises:
        UsageError: for an unknown name, listing the known ones.
    """
    for name in names or ():
        if name not in SAMPLES_WORKLOADS:
            raise UsageError(f"unknown workload {name!r}; known: {', '.join(SAMPLES_WORKLOADS)}")
    return [SAMPLES_WORKLOADS[name] for name in names or SAMPLES_WORKLOADS]


def draw_samples(llm: LLM, prompt: Sequence[int], sampling: Sampling, max_tokens: int, samples: int, batch: int) -> list[list[Output]]:
    """All trajectories of one prompt.

    Args:
        batch: how many are decoded together; 1 draws them one after the other.

    Returns:
        One list per batch, in the order they were drawn.
    """
    groups = []
    for first in range(0, samples, batch):
        count = min(batch, samples - first)
        seeded = replace(sampling, n=count, seed=key(sampling.seed, first))
        (output,) = llm.generate([list(prompt)], seeded, max_tokens, ignore_eos=True)
        groups.append(output.samples or [output])
    return groups


@dataclass(slots=True)
class SamplesContender:
    """A method on many samples of each prompt. What drafters remember between trajectories starts empty with every measurement.

    Args:
        name: the method string.
        fresh: makes an engine with the method, on shared weights and without prefix cache.
        samples: trajectories per prompt.
    """

    name: str
    fresh: Callable[[], LLM]
    samples: int

    def measure(self, prompts: Prompts, sampling: Sampling, max_tokens: int, batch: int) -> Sample:
        """See `Contender.measure`; `batch` trajectories of one prompt run together."""
        llm = self.fresh()
        before = dict(llm.engine.phases.seconds)
        start = time.perf_counter()
        groups = [group for prompt in prompts for group in draw_samples(llm, prompt, sampling, max_tokens, self.samples, batch)]
        seconds = time.perf_counter() - start
        spans = [decode_span(group) for group in groups]
        outputs = [output for group in groups for output in group]
        stats = [output.stats for output in outputs]
        return Sample(
            token_ids=[output.token_ids for output in outputs],
            decode_tokens=sum(tokens for tokens, _ in spans),
            decode_seconds=sum(taken for _, taken in spans),
            seconds=seconds,
            ttft=[each.ttft for each in stats],
            tpot=[each.decode_seconds / max(1, each.output_tokens - each.runs[0]) for each in stats],
            forwards=sum(each.forwards for each in stats),
            phases={phase: total - before[phase] for phase, total in llm.engine.phases.seconds.items()},
            offered=add_counts([each.offered_by_depth for each in stats]),
            accepted=add_counts([each.accepted_by_depth for each in stats]),
            drafted=sum(each.drafted for each in stats),
            kept=sum(each.accepted for each in stats),
            peak_bytes={name: max(each.peak_bytes.get(name, 0) for each in stats) for name in stats[0].peak_bytes},
        )


def tokens_per_forward_by_trajectory(groups: Sequence[Sequence[list[Output]]]) -> list[float]:
    """Tokens per forward of the first, second, .. trajectory, over all prompts.

    Args:
        groups: `draw_samples` of each prompt.
    """
    flat = [[output for group in prompt for output in group] for prompt in groups]
    columns = list(zip(*flat, strict=True))
    return [sum(output.stats.output_tokens for output in column) / sum(output.stats.forwards for output in column) for column in columns]

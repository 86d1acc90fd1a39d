"""Many samples of one prompt: different from each other, repeatable, measured from an empty table."""

from __future__ import annotations

import pytest

from paceline.bench.audit.toy import toy_decoder
from paceline.bench.runner import Cell, run_cell
from paceline.bench.workloads_samples import (
    SAMPLES_WORKLOADS,
    SamplesContender,
    draw_samples,
    find_samples_workloads,
    tokens_per_forward_by_trajectory,
)
from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load

PROMPT = (1, 2, 3, 1, 2)
SAMPLED = Sampling(temperature=0.7, seed=5)


def engine(method: str) -> LLM:
    return load(toy_decoder(16, seed=3), method, device="cpu", pack=False, kv_tokens=1000, prefix_cache=False)


@pytest.mark.parametrize("batch", [1, 3])
def test_trajectories_differ_and_come_back(batch: int) -> None:
    groups = draw_samples(engine("none"), PROMPT, SAMPLED, 12, samples=5, batch=batch)
    assert [len(group) for group in groups] == ([1] * 5 if batch == 1 else [3, 2])
    found = [output.token_ids for group in groups for output in group]
    assert len(set(map(tuple, found))) == 5
    again = draw_samples(engine("none"), PROMPT, SAMPLED, 12, samples=5, batch=batch)
    assert [output.token_ids for group in again for output in group] == found


def test_later_trajectories_profit_from_earlier_ones() -> None:
    llm = engine("stand:nodes=16")
    prompts = [PROMPT, (4, 5, 4), (9, 1)]
    groups = [draw_samples(llm, prompt, SAMPLED, 40, samples=8, batch=1) for prompt in prompts]
    speeds = tokens_per_forward_by_trajectory(groups)
    assert len(speeds) == 8
    assert sum(speeds[-3:]) > sum(speeds[:3])


def test_every_measurement_starts_from_an_empty_table() -> None:
    weights = engine("none")
    methods = ("none", "stand:nodes=8")
    made: list[LLM] = []

    def fresh(method: str) -> LLM:
        made.append(load(weights, method, device="cpu", kv_tokens=1000, prefix_cache=False))
        return made[-1]

    contenders = [SamplesContender(method, lambda method=method: fresh(method), 4) for method in methods]  # type: ignore[misc]
    rows = run_cell(Cell("best-of-4", [PROMPT], SAMPLED, 10, 2, repeats=2), contenders)
    assert len(made) == 6
    assert [row["method"] for row in rows] == list(methods)
    assert all(row["output_tokens"] == 40 for row in rows)
    first, second = (contenders[1].measure([PROMPT], SAMPLED, 10, 2) for _ in range(2))
    assert (first.token_ids, first.forwards, first.drafted) == (second.token_ids, second.forwards, second.drafted)


def test_unknown_workloads_are_named() -> None:
    assert [workload.samples for workload in find_samples_workloads(["best-of-8"])] == [8]
    assert [workload.name for workload in find_samples_workloads(None)] == list(SAMPLES_WORKLOADS)
    with pytest.raises(UsageError, match=r"unknown workload 'best-of-3'; known: best-of-4"):
        find_samples_workloads(["best-of-3"])

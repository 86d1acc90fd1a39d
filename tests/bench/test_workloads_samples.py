"""What methods remember when a round begins, and many samples of one prompt: measured from empty, warm, or replayed memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline.bench.audit.toy import toy_decoder
from paceline.bench.runner import Cell, MethodContender, Sample, draw_samples, run_cell, tokens_per_forward_by_trajectory
from paceline.bench.suite import BenchSettings, run_bench
from paceline.core.sampling import Sampling
from paceline.drafting.base import memories
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
    llm = engine("stand:nodes=16,budget=fixed")  # what a measured budget sends depends on how busy the machine is
    prompts = [PROMPT, (4, 5, 4), (9, 1)]
    groups = [draw_samples(llm, prompt, SAMPLED, 40, samples=8, batch=1) for prompt in prompts]
    speeds = tokens_per_forward_by_trajectory(groups)
    assert len(speeds) == 8
    assert sum(speeds[-3:]) > sum(speeds[:3])


CELL = Cell("w", [PROMPT, (4, 5, 4)], Sampling(), 24, 1, repeats=2, others=[(9, 1), (7, 7, 3)])
MEMORIES = ("cold", "warm", "replay")


def rounds(method: str, memory: str, count: int = 3, cell: Cell = CELL) -> list[Sample]:
    contender = MethodContender(method, engine(method), memory)  # type: ignore[arg-type]
    return [contender.measure(cell) for _ in range(count)]


@pytest.mark.parametrize("method", ["lookahead:budget=fixed", "stand:scope=process,nodes=16,budget=fixed"])
def test_cold_rounds_start_from_nothing_warm_ones_from_other_answers_and_replays_from_the_same(method: str) -> None:
    first, *later = rounds(method, "cold")
    assert all((found.forwards, found.drafted, found.token_ids) == (first.forwards, first.drafted, first.token_ids) for found in later)
    warm, *again = rounds(method, "warm")
    assert all((found.forwards, found.drafted) == (warm.forwards, warm.drafted) for found in again)  # no trace of the round before
    assert warm.token_ids == first.token_ids
    assert warm.drafted != first.drafted
    cold, replay, _ = rounds(method, "replay")
    assert (cold.forwards, cold.drafted) == (first.forwards, first.drafted)
    assert replay.forwards < warm.forwards  # its own answers are the best hints there are


def test_seconds_of_warming_up_are_not_measured() -> None:
    cold, warm = (rounds("lookahead:budget=fixed", memory, 1)[0] for memory in ("cold", "warm"))
    assert warm.tokens == cold.tokens
    long = rounds("lookahead:budget=fixed", "warm", 1, replace(CELL, others=CELL.others * 20))[0]
    assert long.seconds < 20 * warm.seconds


def test_only_methods_that_keep_text_have_memories() -> None:
    assert not memories(engine("none").engine.drafter)
    assert not memories(engine("prompt-lookup").engine.drafter)
    assert len(memories(engine("lookahead+prompt-lookup+stand").engine.drafter)) == 2


def test_samples_of_a_prompt_are_rows_of_the_bench() -> None:
    settings = BenchSettings(("lookahead", "stand:nodes=8"), ("undraftable",), (2,), memories=MEMORIES, prompts=2, max_tokens=8, repeats=1)
    rows = run_bench(toy_decoder(16, seed=3), settings).rows
    names = [f"{method}{state}" for method in ("lookahead", "stand:nodes=8") for state in ("", " (warm)", " (replay)")]
    assert [row["method"] for row in rows] == ["none", *names]
    assert [row["memory"] for row in rows] == ["cold", *MEMORIES, *MEMORIES]


def test_every_contender_draws_the_same_number_of_samples() -> None:
    cell = Cell("best-of-4", [PROMPT], SAMPLED, 10, 2, repeats=2, samples=4, coupled=False)
    contenders = [MethodContender(method, engine(method)) for method in ("none", "stand:nodes=8,budget=fixed")]
    rows = run_cell(cell, contenders)
    assert all(row["output_tokens"] == 40 for row in rows)
    assert all(row["samples"] == 4 for row in rows)
    assert all("identical_outputs" not in row for row in rows)  # laws are equal here, not tokens
    first, second = (contenders[1].measure(cell) for _ in range(2))
    assert (first.token_ids, first.forwards, first.drafted) == (second.token_ids, second.forwards, second.drafted)

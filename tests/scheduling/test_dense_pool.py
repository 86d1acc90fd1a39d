"""The pool: who shares a forward, how long anybody waits, and what it saves."""

from __future__ import annotations

import pytest
from dense_engines import alone, ids, make, noisy, prompts, target

from paceline.core.request import Request
from paceline.engine.llm import LLM
from paceline.scheduling.dense.pool import SequencePool


@pytest.fixture(scope="module")
def base() -> LLM:
    return target(eos=())


def pool(llm: LLM) -> SequencePool:
    assert isinstance(llm.engine.scheduler, SequencePool)
    return llm.engine.scheduler


def equal(count: int, length: int = 6) -> list[list[int]]:
    return [[(index * 5 + at * 3) % 24 for at in range(length)] for index in range(count)]


def test_equal_lengths_and_equal_acceptance_always_group(base: LLM) -> None:
    llm = make(base, noisy(base, 0.0), "exspec:batch=4,window=12", "draft-model:length=3")
    ids(llm, equal(12), 16)
    assert pool(llm).batches.group_rate == 1.0
    assert llm.engine.runner.dense.traffic.moved == llm.engine.runner.dense.traffic.aside  # type: ignore[attr-defined]


def test_the_tail_falls_back(base: LLM) -> None:
    llm = make(base, noisy(base, 0.0), "exspec:batch=4,window=12", "draft-model:length=3")
    ids(llm, equal(6), 16)
    batches = pool(llm).batches
    assert batches.grouped > 0
    assert batches.fallback > 0


def test_switched_off_nothing_groups(base: LLM) -> None:
    """The third arm: the pool alone, to tell what grouping adds."""
    llm = make(base, noisy(base, 0.0), "exspec:batch=4,window=12,grouping=false", "draft-model:length=3")
    assert ids(llm, equal(12), 16) == alone(base, equal(12), 16)
    assert pool(llm).batches.grouped == 0
    assert pool(llm).batches.group_rate == 0


def test_smaller_groups_where_allowed(base: LLM) -> None:
    asked = [*equal(3), *equal(3, 11)]
    rates = {}
    for least in (0, 2):
        llm = make(base, noisy(base, 0.0), f"exspec:batch=4,window=6,min_group={least}", "draft-model:length=3")
        ids(llm, asked, 16)
        rates[least] = pool(llm).batches.group_rate
    assert rates[0] < rates[2] == 1.0


def forwards(llm: LLM, asked: list[list[int]], tokens: list[int]) -> int:
    """Target forwards for requests of different limits."""
    for prompt, limit in zip(asked, tokens, strict=True):
        llm.engine.submit(Request(tuple(prompt), max_tokens=limit, ignore_eos=True))
    while not llm.engine.idle:
        llm.engine.step()
    return llm.engine.runner.forwards


@pytest.mark.parametrize("option", ["", ",grouping=false", ",sort=true"])
def test_no_more_calls_than_a_fixed_batch(base: LLM, option: str) -> None:
    """On prompts sorted by length; the pool refills places that a fixed batch leaves empty."""
    asked = sorted(prompts(16), key=len)
    limits = [4 + 7 * (index % 3) for index in range(16)]
    draft = noisy(base, 0.2)
    fixed = forwards(make(base, draft, "eqspec:batch=4"), asked, limits)
    pooled = forwards(make(base, draft, "exspec:batch=4,window=8" + option), asked, limits)
    assert pooled < fixed


@pytest.mark.parametrize("bound", [1, 2, 4])
def test_nobody_waits_longer_than_the_bound(base: LLM, bound: int) -> None:
    asked = prompts(20)
    llm = make(base, noisy(base, 0.2), f"exspec:batch=3,window=16,max_wait={bound}")
    assert ids(llm, asked, 10) == alone(base, asked, 10)
    assert 0 < pool(llm).batches.skipped <= bound


def test_without_a_bound_somebody_waits_long(base: LLM) -> None:
    llm = make(base, noisy(base, 0.2), "exspec:batch=3,window=16")
    ids(llm, prompts(20), 10)
    assert pool(llm).batches.skipped > 4


def test_sorted_requests_come_back_in_the_order_asked(base: LLM) -> None:
    asked = prompts(10)
    llm = make(base, noisy(base, 0.2), "exspec:batch=2,window=3,sort=true")
    starts: list[int] = []
    admit = llm.engine.runner.memory.admit

    def spy(tokens: list[int], reserve: int = 0) -> object:
        starts.append(len(tokens))
        return admit(tokens, reserve)

    llm.engine.runner.dense.admit = spy  # type: ignore[attr-defined]
    assert ids(llm, asked, 10) == alone(base, asked, 10)
    assert starts == sorted(starts)
    assert [len(prompt) for prompt in asked] != starts


def test_a_window_is_kept_full_and_no_more(base: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a batch is chosen there are five to choose from, or all that are left."""
    llm = make(base, noisy(base, 0.2), "exspec:batch=2,window=5")
    scheduler, choices = pool(llm), []
    choose = scheduler._choose

    def spy() -> object:
        choices.append((len(scheduler.running), len(scheduler.waiting)))
        return choose()

    monkeypatch.setattr(scheduler, "_choose", spy)
    ids(llm, prompts(12), 6)
    assert all(running == 5 or (running < 5 and not waiting) for running, waiting in choices)
    assert max(running for running, _ in choices) == 5 > min(running for running, _ in choices)


@pytest.mark.parametrize("option", ["", ",grouping=false", ",max_wait=2"])
def test_no_cache_is_thrown_away(base: LLM, option: str) -> None:
    """Batches mix rows whose prompts have been read with others; every prompt is read once, and nothing twice."""
    asked = prompts(16)
    llm = make(base, noisy(base, 0.2), "exspec:batch=4,window=8" + option)
    outputs = llm.generate(asked, None, 10, ignore_eos=True)
    runner, batches = llm.engine.runner, pool(llm).batches
    assert batches.fallback > 0
    decided = sum(output.stats.forwards + output.stats.drafted for output in outputs)
    assert runner.rows - runner.padding == decided + sum(len(prompt) - 1 for prompt in asked)  # type: ignore[attr-defined]


def test_cancelled_while_chosen(base: LLM) -> None:
    llm = make(base, noisy(base, 0.2), "exspec:batch=3,window=5")
    sequences = [s for prompt in prompts(6) for s in llm.engine.submit(Request(tuple(prompt), max_tokens=8, ignore_eos=True))]
    llm.engine.step()
    llm.engine.cancel(sequences[0])
    llm.engine.cancel(sequences[5])
    while not llm.engine.idle:
        llm.engine.step()
    expected = alone(base, prompts(6), 8)
    assert [sequence.output for sequence in sequences[1:5]] == expected[1:5]
    assert not llm.engine.runner.dense.sequences  # type: ignore[attr-defined]

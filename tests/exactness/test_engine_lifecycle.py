"""Memory comes back: after finishing, cancelling at any moment, closing a stream, and failing."""

from __future__ import annotations

import asyncio

import pytest
from toy_engines import METHODS, ids, make, prompts, toy_llm

from paceline.core.errors import CapacityError, UsageError
from paceline.core.request import FinishReason, Request
from paceline.core.sampling import Sampling
from paceline.drafting.base import memories
from paceline.drafting.draft_model import DraftModel
from paceline.engine.llm import LLM

ASKED = prompts(5)
SLOTS = 600


@pytest.fixture(scope="module")
def pair() -> tuple[LLM, LLM]:
    return toy_llm(1), toy_llm(2, layers=1)


def engine(pair: tuple[LLM, LLM], method: str, **options: int) -> LLM:
    return make(*pair, method, kv_tokens=SLOTS, prefix_cache=False, **options)


def assert_empty(llm: LLM) -> None:
    """Nobody runs, no slot is held, and the drafter remembers nobody."""
    assert llm.engine.idle
    assert llm.runner.memory.free_slots == SLOTS
    assert not llm.runner.memory.sequences
    for drafter in (llm.engine.drafter, getattr(llm.engine.drafter, "model", None)):
        if isinstance(drafter, DraftModel):
            assert not drafter.runner.memory.sequences
    for part in memories(llm.engine.drafter):  # what is kept on purpose goes; whatever is left then belongs to a sequence
        part.forget()
    assert llm.engine.drafter.memory_bytes() == 0


@pytest.mark.parametrize("method", METHODS)
def test_finished_sequences_leave_nothing_behind(pair: tuple[LLM, LLM], method: str) -> None:
    llm = engine(pair, method)
    ids(llm, ASKED)
    assert_empty(llm)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [0, 1, 2, 4, 7])
def test_cancelling_frees_everything_at_once(pair: tuple[LLM, LLM], method: str, steps: int) -> None:
    """Waiting, half read, or in the middle of the answer; the others go on unharmed."""
    plain = ids(make(*pair, "none"), ASKED, max_tokens=12)
    llm = engine(pair, method, max_rows=20, max_sequences=3)
    sequences = [llm.engine.submit(Request(tuple(prompt), max_tokens=12))[0] for prompt in ASKED]
    for _ in range(steps):
        llm.engine.step()
    victims = [sequence for sequence in sequences[1::2] if not sequence.finished]
    for sequence in victims:
        llm.engine.cancel(sequence)
        assert sequence.finish_reason is FinishReason.CANCELLED
        llm.engine.cancel(sequence)  # a second time changes nothing
    while not llm.engine.idle:
        llm.engine.step()
    for sequence, tokens in zip(sequences, plain, strict=True):
        assert sequence.output == tokens or (sequence in victims and sequence.output == tokens[: len(sequence.output)])
    assert_empty(llm)


@pytest.mark.parametrize("method", METHODS)
def test_closing_a_stream_cancels(pair: tuple[LLM, LLM], method: str) -> None:
    llm = engine(pair, method)
    stream = llm.stream(ASKED[2], max_tokens=30)
    first = next(stream)
    assert first.token_ids
    assert llm.runner.memory.free_slots < SLOTS
    stream.close()
    assert_empty(llm)


def test_streams_side_by_side(pair: tuple[LLM, LLM]) -> None:
    """Two streams on one engine, read in turns, and an asynchronous one that is broken off."""
    llm = engine(pair, "draft-model:length=3")
    plain = ids(make(*pair, "none"), ASKED[:2], max_tokens=12)
    streams = [llm.stream(prompt, max_tokens=12) for prompt in ASKED[:2]]
    got: list[list[int]] = [[], []]
    live = [0, 1]
    while live:
        for which in list(live):
            chunk = next(streams[which], None)
            if chunk is None:
                live.remove(which)
            else:
                got[which].extend(chunk.token_ids)
    assert got == plain

    async def break_off() -> list[int]:
        seen: list[int] = []
        async for chunk in llm.astream(ASKED[0], max_tokens=12):
            seen.extend(chunk.token_ids)
            if len(seen) >= 4:
                break
        return seen

    seen = asyncio.run(break_off())
    assert seen == plain[0][: len(seen)]
    llm.close()
    assert_empty(llm)


@pytest.mark.parametrize("method", METHODS)
def test_a_failed_generate_leaves_nothing_behind(pair: tuple[LLM, LLM], method: str) -> None:
    """One prompt of a list cannot be served: nothing is started, and the next call works."""
    llm = engine(pair, method)
    with pytest.raises(UsageError, match="outside the model's vocabulary"):
        llm.generate([ASKED[0], [999]])
    assert_empty(llm)
    assert ids(llm, ASKED[:1]) == ids(make(*pair, "none"), ASKED[:1])


def test_what_can_never_fit_is_refused(pair: tuple[LLM, LLM]) -> None:
    llm = make(*pair, "none", kv_tokens=12, prefix_cache=False)
    with pytest.raises(CapacityError, match="kv_tokens"):
        llm.generate([ASKED[0], list(range(20))])
    assert llm.engine.idle
    assert llm.runner.memory.free_slots == 12
    with pytest.raises(CapacityError, match="kv_tokens"):
        llm.generate([[1, 2, 3]], max_tokens=40)
    assert llm.engine.idle
    assert llm.runner.memory.free_slots == 12
    assert len(ids(llm, [[1, 2, 3]], max_tokens=5)[0]) == 5


def test_seeds_matter_and_repeat(pair: tuple[LLM, LLM]) -> None:
    llm = make(*pair, "draft-model:length=3,branching=2x2")
    answers = [ids(llm, ASKED[:2], Sampling(temperature=1.0, seed=seed)) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]

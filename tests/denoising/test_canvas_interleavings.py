"""Whatever is submitted, cancelled and stepped in whatever order: answers are those of decoding alone, and no slot is lost."""

from __future__ import annotations

from functools import cache

import pytest
from diffusion_models import Make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.core.request import FinishReason, Sequence
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM

METHODS = {
    "llada": ("static:block=4", "threshold:block=4,threshold=0.2,cache=prefix", "factor:block=8,cache=dual", "static:block=4,guidance=1"),
    "dream": ("threshold:block=8,threshold=0.3,cache=dual", "static:block=whole,schedule=dream,steps=6"),
    "sdar": ("static", "threshold:threshold=0.3,store=own", "static:guidance=0.5"),
}
CASES = [(layout, method) for layout, methods in METHODS.items() for method in methods]
PROMPTS = ((5, 6, 7, 8, 9), (4,), (5, 6, 7, 8, 9, 10, 11, 12, 13), (30, 31, 32))
LENGTHS = (3, 6, 9)

Action = tuple[str, int, int]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(PROMPTS) - 1), st.integers(0, len(LENGTHS) - 1)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
    ),
    max_size=14,
)


def check(llm: LLM) -> None:
    """Books of the memory against what is running."""
    memory, engine = llm.runner.memory, llm.engine
    held = {id(view) for resident in engine.scheduler.running for view in resident.memories}
    assert {id(sequence) for sequence in memory.sequences} == held
    for resident in engine.scheduler.running:
        assert len(resident.memories) == engine.denoiser.views
        assert not resident.canvas.finished
        assert not resident.canvas.open[: resident.canvas.low].any()


@pytest.mark.parametrize(("layout", "method"), CASES)
@given(script=actions)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_interleavings(make: Make, layout: str, method: str, script: list[Action]) -> None:
    sampling = Sampling(temperature=0.7, seed=2)
    llm = make(layout, method, kv_tokens=64, max_sequences=3, max_rows=40)
    engine, alone = llm.engine, make(layout, method, prefix_cache=False)

    @cache
    def expected(prompt: int, length: int) -> list[int]:
        found: list[int] = alone.generate([list(PROMPTS[prompt])], sampling, LENGTHS[length], ignore_eos=True)[0].token_ids
        return found

    submitted: list[tuple[Sequence, int, int]] = []
    for verb, first, second in script:
        if verb == "submit":
            request = llm.request(list(PROMPTS[first]), sampling, LENGTHS[second], ignore_eos=True)
            submitted.append((engine.submit(request)[0], first, second))
        elif verb == "cancel" and first < len(submitted):
            engine.cancel(submitted[first][0])
        elif verb == "step":
            for _ in range(first):
                engine.step()
        check(llm)
    while not engine.idle:
        engine.step()
    for sequence, prompt, length in submitted:
        if sequence.finish_reason is FinishReason.CANCELLED:
            assert sequence.output == expected(prompt, length)[: len(sequence.output)]
        else:
            assert sequence.output == expected(prompt, length)
    memory = llm.runner.memory
    assert not memory.sequences
    assert memory.free_slots + memory.evictable_slots == memory.total_slots

"""Random workloads: any mixture of methods, settings, limits, arrivals and cancellations leaves every output as plain decoding has it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_engines import METHODS, VOCABULARY, ids, make, overbook, prompts, toy_llm

from paceline.bench.audit.faults import DroppedRow, LeakingMask, MadeUpBonus, StalePositions, WrongPath
from paceline.bench.audit.oracle import OracleDrafter
from paceline.bench.audit.rig import Rig
from paceline.core.request import FinishReason, Request
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM

TARGET, DRAFT = toy_llm(1, eos=(7,)), toy_llm(2, layers=1, eos=(7,))
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.2]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    no_repeat_ngram=st.sampled_from([0, 3]),
    seed=st.integers(0, 3),
)
REQUESTS = st.builds(
    Request,
    ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple),
    sampling=SAMPLINGS,
    max_tokens=st.integers(1, 15),
    ignore_eos=st.booleans(),
    priority=st.integers(0, 1),
)


def plain_output(request: Request) -> list[int]:
    engine = make(TARGET, DRAFT, "none", prefix_cache=False).engine
    (sequence,) = engine.submit(request)
    while not engine.idle:
        engine.step()
    return sequence.output


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    method=st.sampled_from(METHODS),
    requests=st.lists(REQUESTS, min_size=1, max_size=5),
    gaps=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    cancelled=st.sets(st.integers(0, 4), max_size=2),
    max_rows=st.sampled_from([2, 5, 64]),
    kv_tokens=st.sampled_from([60, 120, 1000]),
    prefix_cache=st.booleans(),
)
def test_any_workload_equals_plain_decoding(
    method: str, requests: list[Request], gaps: list[int], cancelled: set[int], max_rows: int, kv_tokens: int, prefix_cache: bool
) -> None:
    options = {"max_rows": max_rows, "kv_tokens": kv_tokens, "prefix_cache": prefix_cache, "max_sequences": 4}
    llm = overbook(make(TARGET, DRAFT, method, coupled=True, **options))
    sequences = []
    for request, gap in zip(requests, gaps, strict=False):
        sequences += llm.engine.submit(request)
        for _ in range(gap):
            if not llm.engine.idle:
                llm.engine.step()
    for at in cancelled & set(range(len(sequences))):
        llm.engine.cancel(sequences[at])
    while not llm.engine.idle:
        llm.engine.step()
    for sequence in sequences:
        expected = plain_output(sequence.request)
        if sequence.finish_reason is FinishReason.CANCELLED:
            expected = expected[: len(sequence.output)]
        assert sequence.output == expected
    memory = llm.runner.memory
    assert memory.free_slots + memory.evictable_slots == kv_tokens


@pytest.mark.parametrize("fault", [StalePositions, LeakingMask, DroppedRow, WrongPath, MadeUpBonus])
def test_a_broken_loop_would_be_noticed(fault: type) -> None:
    """Negative controls: each fault changes some output of the comparison that the tests in this folder make."""
    asked = [tuple(prompt) for prompt in prompts(5)]
    plain: list[list[int]] = ids(make(TARGET, DRAFT, "none"), [list(prompt) for prompt in asked], ignore_eos=True)
    drafter = OracleDrafter(dict(zip(asked, plain, strict=True)), VOCABULARY, branches=True)
    sound = Rig(TARGET).wired(drafter, asked, 20)
    assert ids(sound, [list(prompt) for prompt in asked], ignore_eos=True) == plain
    runner = {"runner": fault} if hasattr(fault, "probe") else {}
    broken: LLM = Rig(TARGET).wired(drafter, asked, 20, **runner)
    if not runner:
        broken.engine.verifier = fault()
    assert ids(broken, [list(prompt) for prompt in asked], ignore_eos=True) != plain

"""Bugs of published batch speculation, put in on purpose: the comparison with plain decoding must notice every one."""

from __future__ import annotations

import pytest
from dense_engines import alone, ids, make, noisy, prompts, target

from paceline.bench.audit.dense_faults import FAULTS, DenseFault
from paceline.bench.match import Match, match
from paceline.engine.llm import LLM

TOKENS = 24


@pytest.fixture(scope="module")
def base() -> LLM:
    return target(eos=())


@pytest.fixture(scope="module")
def plain(base: LLM) -> list[list[int]]:
    return alone(base, prompts(), TOKENS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_noticed(base: LLM, plain: list[list[int]], fault: DenseFault) -> None:
    draft, method = noisy(base, 0.3), "draft-model:length=2"
    llm = make(base, draft, f"{fault.batching}:batch=4", method)
    whole = match(plain, ids(llm, prompts(), TOKENS))
    assert whole == Match(1.0, 1.0)
    broken = make(base, draft, f"{fault.batching}:batch=4", method)
    fault.build(broken, draft)
    found = match(plain, ids(broken, prompts(), TOKENS))
    assert found.exact < 0.75
    assert found.exact <= found.partial < 1


def test_the_bonus_of_the_draft_is_noticed_only_where_models_differ(base: LLM, plain: list[list[int]]) -> None:
    """Negative control of the control: with a draft that is the target, its bonus is right."""
    fault = next(fault for fault in FAULTS if "bonus" in fault.name)
    draft = noisy(base, 0.0)
    llm = make(base, draft, "eqspec:batch=4")
    fault.build(llm, draft)
    assert match(plain, ids(llm, prompts(), TOKENS)).exact == 1


def test_match() -> None:
    assert match([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == Match(1.0, 1.0)
    assert match([[1, 2, 3, 4], [5]], [[1, 2, 9, 4], [5]]) == Match(0.5, 0.75)
    assert match([[1, 2, 3, 4]], [[1, 2]]) == Match(0.0, 0.5)
    assert match([[1, 2]], [[1, 2, 3]]) == Match(0.0, 1.0)
    with pytest.raises(ValueError, match="one of each"):
        match([[1]], [])

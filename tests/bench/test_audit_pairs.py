"""The audit on an encoder-decoder: sound methods pass, a swapped source and a wrong row are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from paceline.bench.audit.agreement import check_agreement, yardstick
from paceline.bench.audit.certificate import Kind, Outcome
from paceline.bench.audit.faults import DroppedRow
from paceline.bench.audit.identity import check_identity, reference
from paceline.bench.audit.rig import Rig
from paceline.bench.audit.toy_pair import toy_pair
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.core.sampling import Sampling
from paceline.drafting.iad import IAD, IADConfig
from paceline.engine.load import load
from paceline.engine.runner import Runner

PROMPTS = [tuple(range(1, 13)), (3, 1, 2, 3, 1, 9), (0, 7), (8,) * 5]
SETTINGS = {"greedy": Sampling(), "penalties": Sampling(repetition_penalty=1.2, presence_penalty=0.3)}
LENGTH = 14


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig(load(toy_pair(seed=3, noise=0.4), "none", pack=False, device="cpu", kv_tokens=64))


class SwappedSources(Runner):
    """Rows of one sequence read the source of another."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        views = [segment.cross for segment in batch.segments]
        segments = [replace(segment, cross=view) for segment, view in zip(batch.segments, [*views[1:], *views[:1]], strict=True)]
        return super().forward(replace(batch, segments=segments))


@pytest.mark.parametrize("method", ["iad", "prompt-lookup"])
def test_a_sound_method_passes(rig: Rig, method: str) -> None:
    llm = rig.engine(method, PROMPTS, LENGTH)
    plain = reference(rig, PROMPTS, SETTINGS, LENGTH)
    check = check_identity("greedy identity", rig, llm, PROMPTS, plain, SETTINGS, LENGTH, promised=True)
    assert check.outcome is Outcome.PASSED
    measure = yardstick(rig, PROMPTS, LENGTH)
    assert check_agreement(rig, llm, PROMPTS, LENGTH, measure, promised=True).outcome is Outcome.PASSED


@pytest.mark.parametrize("fault", [SwappedSources, DroppedRow])
def test_a_fault_is_seen(rig: Rig, fault: Callable[..., Runner]) -> None:
    llm = rig.wired(IAD(IADConfig()), PROMPTS, LENGTH, fault)  # type: ignore[arg-type]
    measure = yardstick(rig, PROMPTS, LENGTH)
    assert check_agreement(rig, llm, PROMPTS, LENGTH, measure, promised=True).outcome is Outcome.FAILED


def test_a_swapped_source_is_a_violation_not_a_tie(rig: Rig) -> None:
    """Margins are weighed behind the right source."""
    llm = rig.wired(IAD(IADConfig()), PROMPTS, LENGTH, SwappedSources)
    plain = reference(rig, PROMPTS, SETTINGS, LENGTH)
    found = check_identity("greedy identity", rig, llm, PROMPTS, plain, SETTINGS, LENGTH, promised=True)
    assert found.outcome is Outcome.FAILED
    assert {difference.kind for difference in found.differences} == {Kind.VIOLATION}  # margins are those of the right source

"""The audit passes sound methods, fails broken ones, and sees every fault it plants."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from paceline.bench.audit import toy_checks
from paceline.bench.audit.certificate import Certificate, Check, Control, Difference, Kind, Outcome
from paceline.bench.audit.faults import Pretender
from paceline.bench.audit.identity import check_identity, reference
from paceline.bench.audit.render import render
from paceline.bench.audit.rig import Rig
from paceline.bench.audit.run import guarantee_of, run_audit
from paceline.bench.audit.toy import toy_decoder
from paceline.core import registry
from paceline.core.errors import AuditFailure, UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.registry import Method
from paceline.core.sampling import Sampling
from paceline.drafting.base import DraftContext
from paceline.drafting.draft_model import DraftModel, DraftModelConfig
from paceline.drafting.prompt_lookup import PromptLookup
from paceline.engine.load import load

PROMPTS = [[1, 2, 3, 1, 2], [5] * 9, [0, 4, 0, 4, 0, 6, 7], list(range(8)) * 2]


class LyingDraft(Pretender):
    """A method that breaks sampling: it chooses tokens but claims to have drawn them."""

    Config = DraftModelConfig

    @classmethod
    def build(cls, config: DraftModelConfig, context: DraftContext) -> LyingDraft:
        return cls(DraftModel.build(config, context))


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_checks, "SAMPLES", 500)


def models() -> dict[str, Any]:
    return {"model": toy_decoder(8, seed=1), "draft": toy_decoder(8, seed=2, layers=1)}


def audit(method: str, **options: Any) -> Certificate:
    return run_audit(**models(), method=method, prompts=PROMPTS, max_tokens=12, **options)


def test_a_sound_method_passes_and_every_fault_is_seen() -> None:
    seen: list[tuple[str, int, int]] = []
    certificate = audit("draft-model:length=3,branching=2x1", on_progress=lambda *step: seen.append(step))
    assert certificate.outcome is Outcome.PASSED
    certificate.require()
    assert {check.name for check in certificate.checks} == {
        "greedy identity",
        "logit agreement",
        "loop under known drafts",
        "coupled sampling identity",
        "node rule, exact law",
        "law of the loop",
    }
    assert all(check.compared > 0 for check in certificate.checks)
    assert len(certificate.controls) == 11
    assert all(control.caught for control in certificate.controls)
    assert ("greedy identity", 36, 36) in seen
    written = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert written["verdict"] == "passed"
    assert written["prompts"]["count"] == len(PROMPTS)
    assert len(written["weights_sha256"]) == 64
    assert written["machine"]["packages"]["torch"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(certificate))
    assert "token-identical" in console.export_text()


def test_a_lying_method_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Method("liar", "drafting", "lies", *registry.EXACT, f"{__name__}:LyingDraft", needs="draft model")
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, liar))
    certificate = audit("liar", controls=False)
    assert {check.name for check in certificate.checks if check.outcome is Outcome.FAILED} == {"law of the loop"}
    with pytest.raises(AuditFailure, match="law of the loop") as failure:
        certificate.require()
    assert failure.value.exit_code == 5


def test_an_approximate_method_is_measured_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    vague = Method("vague", "drafting", "approximates", Guarantee.BOUNDED, Guarantee.BOUNDED, f"{__name__}:LyingDraft")
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, vague))
    certificate = audit("vague", controls=False)
    assert certificate.outcome is Outcome.MEASURED
    certificate.require()
    assert guarantee_of("vague+none") == {"greedy": Guarantee.BOUNDED, "sampling": Guarantee.BOUNDED}


def test_a_method_that_needs_training_skips_the_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Method("trained", "drafting", "", *registry.EXACT, "paceline.drafting.prompt_lookup:PromptLookup", trains="heads")
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, trained))
    assert trained.load() is PromptLookup
    checks = {check.name: check for check in audit("trained", controls=False).checks}
    assert checks["law of the loop"].outcome is Outcome.SKIPPED
    assert "heads" in checks["law of the loop"].detail


def test_greedy_only() -> None:
    certificate = audit("prompt-lookup", sampling_checks=False, controls=False)
    assert [check.name for check in certificate.checks] == ["greedy identity", "logit agreement", "loop under known drafts"]
    assert certificate.controls == ()


def test_bit_exact_mode_on_bf16() -> None:
    decoder = toy_decoder(8, seed=1, dtype=torch.bfloat16)
    decoder.pack()
    certificate = run_audit(decoder, "prompt-lookup", exact=True, prompts=PROMPTS, max_tokens=12, sampling_checks=False)
    assert certificate.checks[0].name == "bit identity"
    assert certificate.outcome is Outcome.PASSED
    assert certificate.controls[-1].name == "nudged bit"
    assert certificate.weights_sha256 is None  # packed: the original bytes are gone


def test_without_exact_mode_bits_do_differ() -> None:
    """Negative control of the comparison above: ordinary speculative decoding in bf16 rounds differently from plain decoding."""
    from paceline.bench.audit.bits import check_bits

    wide = toy_decoder(8, seed=1, dtype=torch.bfloat16, layers=6)
    rig = Rig(load(wide, "none", device="cpu", kv_tokens=4))
    prompts = [tuple(prompt) for prompt in PROMPTS]
    check = check_bits(rig, rig.engine("prompt-lookup", prompts, 24), prompts, 24, promised=True)
    assert check.outcome is Outcome.FAILED
    assert check.numbers["identical_rows"] < check.numbers["rows"]


def test_an_output_that_ends_early_is_a_violation() -> None:
    rig = Rig(load(toy_decoder(8, seed=1), "none", device="cpu", kv_tokens=4))
    prompts = [tuple(PROMPTS[0])]
    settings = {"greedy": Sampling()}
    plain = reference(rig, prompts, settings, 6)
    llm = rig.engine("none", prompts, 5)
    check = check_identity("identity", rig, llm, prompts, plain, settings, 5, promised=True)
    assert check.outcome is Outcome.FAILED
    assert [(item.position, item.method, item.kind) for item in check.differences] == [(5, None, Kind.VIOLATION)] * 2
    assert "ended early" in check.differences[0].describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"prompts": []}, "empty"), ({"prompts": [[1] * 600]}, "leaves room"), ({"max_tokens": 600}, "no room")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_audit(models()["model"], "none", **options)


def certificate_of(*outcomes: Outcome, caught: bool = True, differences: tuple[Difference, ...] = ()) -> Certificate:
    checks = [Check(f"check {at}", "toy", outcome, 1, "", differences) for at, outcome in enumerate(outcomes)]
    control = Control("fault", "broken", "check 0", caught, "evidence")
    return Certificate("m", None, None, None, "none", {}, {}, {}, {}, checks, [control], "", 0.0, "")


def test_the_weakest_finding_decides() -> None:
    assert certificate_of(Outcome.PASSED, Outcome.PASSED).outcome is Outcome.PASSED
    assert certificate_of(Outcome.PASSED, Outcome.TIES, Outcome.SKIPPED).outcome is Outcome.TIES
    assert certificate_of(Outcome.MEASURED, Outcome.TIES).outcome is Outcome.MEASURED
    assert certificate_of(Outcome.PASSED, Outcome.FAILED).outcome is Outcome.FAILED
    assert certificate_of(Outcome.SKIPPED).outcome is Outcome.SKIPPED


def test_a_missed_control_fails_the_audit() -> None:
    blind = certificate_of(Outcome.PASSED, caught=False)
    assert blind.outcome is Outcome.FAILED
    with pytest.raises(AuditFailure, match="did not notice the fault 'fault'"):
        blind.require()


def test_violations_are_listed_without_ties() -> None:
    violation = Difference("greedy", 0, 3, 1, 2, 0.5, 0.25, 1e-6, Kind.VIOLATION)
    tie = replace(violation, gap=1e-9, kind=Kind.TIE)
    failed = certificate_of(Outcome.FAILED, differences=(tie, violation))
    assert failed.violations == [violation]
    with pytest.raises(AuditFailure, match=r"position 3: plain 1, method 2; top-2 margin 0.5, gap 0.25"):
        failed.require()

"""The audit of FreeDave: it passes where it promises static decoding, names the decoder it drafts for elsewhere, notices every fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusion_models import write

from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.run import run_audit
from paceline.core.errors import AuditFailure

PROMPTS = [[5, 6, 7, 8, 9], [4, 3], [30, 31, 32]]
TWIN = "identity to the decoder drafted for"


@pytest.mark.parametrize(
    ("layout", "method"), [("llada", "freedave:block=8"), ("dream", "freedave:block=8,mode=tree"), ("sdar", "freedave:eager=true")]
)
def test_the_promise_holds_and_faults_do_not(tmp_path: Path, layout: str, method: str) -> None:
    certificate = run_audit(write(tmp_path, layout), method, dtype="float64", prompts=PROMPTS, max_tokens=16)
    certificate.require()
    assert certificate.guarantee["greedy"] == "token-identical"
    outcomes = {check.name: check.outcome for check in certificate.checks}
    assert outcomes == dict.fromkeys(("greedy identity", "independence of the batch", TWIN), Outcome.PASSED)
    assert {control.name for control in certificate.controls} >= {"credulous", "own guesses", "crossed branches"}
    assert all(control.caught for control in certificate.controls)


@pytest.mark.parametrize("method", ["freedave:block=8,cache=dual", "freedave:block=8,threshold=0.3,match=exact"])
def test_what_is_not_plain_decoding_is_compared_with_its_own(tmp_path: Path, method: str) -> None:
    certificate = run_audit(write(tmp_path, "llada"), method, dtype="float64", prompts=PROMPTS, max_tokens=16, controls=False)
    certificate.require()
    outcomes = {check.name: check.outcome for check in certificate.checks}
    assert outcomes == {"greedy identity": Outcome.MEASURED, "independence of the batch": Outcome.PASSED, TWIN: Outcome.PASSED}


def test_near_lossless_is_measured(tmp_path: Path) -> None:
    certificate = run_audit(write(tmp_path, "llada"), "freedave:block=8,threshold=0.3", dtype="float64", prompts=PROMPTS, max_tokens=16)
    certificate.require()
    assert certificate.guarantee["greedy"] == "bounded"
    assert TWIN not in {check.name for check in certificate.checks}


def test_a_broken_promise_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.denoising.freedave_decoder.walk", lambda states, *_: list(range(len(states))))
    certificate = run_audit(write(tmp_path, "llada"), "freedave:block=8", dtype="float64", prompts=PROMPTS, max_tokens=16, controls=False)
    with pytest.raises(AuditFailure):
        certificate.require()

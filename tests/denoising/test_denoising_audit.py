"""`paceline audit` on diffusion models: passes what is plain denoising, measures what is not, and notices every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusion_models import LAYOUTS, write
from typer.testing import CliRunner

from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.run import run_audit
from paceline.cli.app import app
from paceline.core.errors import AuditFailure
from paceline.core.uniforms import uniform_block
from paceline.denoising import reading
from paceline.denoising.canvas import Floats
from paceline.denoising.reading import Question
from paceline.engine.load import load

PROMPTS = [[5, 6, 7, 8, 9], [4, 3], [30, 31, 32]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_static_decoding_passes_and_faults_do_not(tmp_path: Path, layout: str) -> None:
    method = "static" if layout == "sdar" else "static:block=4"
    certificate = run_audit(write(tmp_path, layout), method, dtype="float64", prompts=PROMPTS, max_tokens=12)
    certificate.require()
    assert {check.name: check.outcome for check in certificate.checks} == {
        "greedy identity": Outcome.PASSED,
        "independence of the batch": Outcome.PASSED,
    }
    assert len(certificate.controls) == 5
    assert all(control.caught for control in certificate.controls)


@pytest.mark.parametrize("method", ["threshold:threshold=0,block=8", "static:per_step=4", "static:cache=dual,block=4"])
def test_approximate_methods_are_measured(tmp_path: Path, method: str) -> None:
    certificate = run_audit(write(tmp_path, "llada"), method, dtype="float64", prompts=PROMPTS, max_tokens=12, controls=False)
    certificate.require()
    assert certificate.guarantee["greedy"] == "bounded"
    identity, independence = certificate.checks
    assert identity.outcome is Outcome.MEASURED
    assert 0 < identity.numbers["token_agreement"] < 1
    assert independence.outcome is Outcome.PASSED


def test_a_broken_promise_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance said to be plain decoding, and samples that depend on the batch."""
    folder = write(tmp_path, "llada")
    monkeypatch.setattr("paceline.denoising.static.StaticConfig.guarantees", None)
    certificate = run_audit(folder, "static:guidance=3", dtype="float64", prompts=PROMPTS, max_tokens=12, controls=False)
    with pytest.raises(AuditFailure):
        certificate.require()
    calls = iter(range(10_000))

    def shared(question: Question, width: int) -> Floats:
        return uniform_block([next(calls)] * len(question.positions), range(len(question.positions)), width)

    monkeypatch.setattr(reading, "_uniforms", shared)
    certificate = run_audit(folder, "static", dtype="float64", prompts=PROMPTS, max_tokens=12, controls=False)
    assert [check.outcome for check in certificate.checks] == [Outcome.PASSED, Outcome.FAILED]


def test_the_command(tmp_path: Path) -> None:
    folder = write(tmp_path, "dream")
    found = CliRunner().invoke(app, ["audit", str(folder), "--method", "threshold", "--max-tokens", "8", "--json", "--no-controls"])
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    assert record["checks"][0]["outcome"] == "measured"
    assert load(folder, "auto", device="cpu", kv_tokens=64).method == "static"

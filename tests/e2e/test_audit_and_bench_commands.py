"""`paceline audit` and `paceline bench`: thin commands over the rooms that do the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(["def name_3(value):\n", [5, 6, 7, 8, 9, 5, 6]]), encoding="utf-8")
    return str(file)


def test_audit_writes_a_certificate(tiny: str, prompts: str, tmp_path: Path) -> None:
    place = tmp_path / "certificate.json"
    arguments = ["--method", "draft-model", "--draft", tiny, "--prompts", prompts, "-n", "8", "--no-sampling", "--no-controls"]
    found = invoke("audit", tiny, *arguments, "--out", str(place), "--json")
    assert found.exit_code == 0, found.stderr
    certificate = json.loads(found.stdout)
    assert certificate == json.loads(place.read_text(encoding="utf-8"))
    assert certificate["verdict"] == "passed"
    assert certificate["prompts"]["count"] == 2
    assert invoke("audit", tiny, *arguments).stdout.strip().endswith("Verdict: passed")


def test_a_violation_exits_with_5(tiny: str, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a verifier that accepts whatever was drafted."""
    from paceline.core.verdict import Verdict
    from paceline.verification.verifier import Verifier

    honest = Verifier.judge

    def gullible(self: Any, sequences: Any, trees: Any, logits: Any) -> list[Verdict]:
        verdicts = honest(self, sequences, trees, logits)
        return [
            Verdict((1,), (tree.token[1], verdict.tokens[-1])) if len(tree) > 1 else verdict
            for tree, verdict in zip(trees, verdicts, strict=True)
        ]

    monkeypatch.setattr(Verifier, "judge", gullible)
    found = invoke("audit", tiny, "--method", "prompt-lookup", "--prompts", prompts, "-n", "24", "--no-sampling", "--no-controls")
    assert found.exit_code == 5
    assert found.stderr.startswith("error: ")
    assert "Verdict: failed" in found.stdout


def test_bench_writes_record_and_pictures(tiny: str, tmp_path: Path) -> None:
    arguments = ["--methods", "prompt-lookup", "--workloads", "structured", "--batch", "1", "--prompts", "1", "-n", "8", "--repeats", "1"]
    found = invoke("bench", tiny, *arguments, "--out", str(tmp_path), "--json")
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    assert record["rows"] == json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["rows"]
    assert [row["method"] for row in record["rows"]] == ["none", "prompt-lookup"]
    assert (tmp_path / "bench-speedup.png").read_bytes().startswith(b"\x89PNG")
    resumed = invoke("bench", tiny, *arguments, "--out", str(tmp_path), "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "prompt-lookup" in resumed.stdout
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["rows"] == record["rows"]

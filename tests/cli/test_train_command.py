"""`paceline train learn2pd` passes its options on and shows what was made."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paceline.cli import options
from paceline.cli.app import app
from paceline.denoising.learn2pd_filter import Filter, FilterFacts
from paceline.denoising.localleap_calibration import Predictions
from paceline.models.config import DiffusionSpec
from paceline.training import learn2pd, localleap

FIGURES = {
    "records": 800, "prompts": 100, "positives": 0.79, "static_forwards": 2400, "loss": {"validation": 0.3}, "loss_constant": 0.5,
    "loss_logistic": 0.4, "test": {"accepted": 0.5, "wrong": 0.02}, "scalar_threshold": {"accepted": 0.4, "wrong": 0.03},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trainer was asked for; it answers with one filter."""
    calls: list[dict[str, Any]] = []

    def train_filter(model: Any, prompts: Any, job: Any, out: Path, work_dir: Path | None, resume: bool, report: Any) -> Filter:
        calls.append({"prompts": prompts, "job": job, "out": out, "work_dir": work_dir, "resume": resume})
        weight, bias = np.zeros((8, 8), np.float32), np.zeros(8, np.float32)
        return Filter(((weight, bias), (weight, bias)), FilterFacts("0123", 8, "probability", 0.9, FIGURES))

    decoder = SimpleNamespace(config=SimpleNamespace(diffusion=DiffusionSpec(mask=1)), folder=Path("models/m"))
    model = SimpleNamespace(
        name="m", tokenizer=object(), request=lambda text: SimpleNamespace(ids=(len(text),)), runner=SimpleNamespace(decoder=decoder)
    )
    monkeypatch.setattr(options, "open_model", lambda *_, **__: model)
    monkeypatch.setattr(learn2pd, "train_filter", train_filter)
    return calls


def test_options_reach_the_trainer(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nbc\ndef\n")
    arguments = ["m", "--out", "f", "--block", "8", "--length", "24", "--prompts", str(tmp_path / "prompts.txt"), "--feature", "entropy"]
    arguments += ["--batch", "3", "--work-dir", "w", "--no-resume", "--iterations", "7", "--layers", "4", "--loss-on", "masked"]
    found = CliRunner().invoke(app, ["train", "learn2pd", *arguments, "--target", "0.1", "--seed", "5"])
    assert found.exit_code == 0, found.stderr
    (call,) = asked
    assert call["prompts"] == [(1,), (2,), (3,)]
    assert (call["out"], call["work_dir"], call["resume"]) == (Path("f"), Path("w"), False)
    job = call["job"]
    assert (job.block, job.length, job.feature, job.batch) == (8, 24, "entropy", 3)
    assert (job.fit.iterations, job.fit.layers, job.fit.loss_on, job.fit.target, job.fit.seed) == (7, 4, "masked", 0.1, 5)
    assert "144 parameters" in found.stdout
    assert "3.0 times fewer forwards" in found.stdout
    assert "accepts 50% of open positions" in found.stdout
    assert "--method learn2pd:filter=f,block=8" in found.stdout


def test_a_filter_goes_beside_its_model(asked: list[dict[str, Any]]) -> None:
    found = CliRunner().invoke(app, ["train", "learn2pd", "m", "--count", "3"])
    assert found.exit_code == 0, found.stderr
    assert (asked[0]["out"], asked[0]["job"].block) == (Path("models/m/learn2pd-32.safetensors"), 32)
    assert found.stdout.endswith("decode with it: --method learn2pd\n")
    options.open_model("m", "static").runner.decoder.folder = None
    found = CliRunner().invoke(app, ["train", "learn2pd", "m", "--count", "3"])
    assert found.exit_code == 2
    assert "not loaded from a folder" in found.stderr


def test_local_leaps_are_set_by_what_is_watched(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    chance, away = np.tile(np.linspace(0.5, 0.89, 40), 2), np.repeat([1.0, 2.0], 40)
    calls: list[dict[str, Any]] = []

    def watch(model: Any, prompts: Any, length: int, **settings: Any) -> Predictions:
        calls.append({"prompts": len(prompts), "length": length, **settings})
        return Predictions(chance, away, away == 1 if settings["anchor"] == 0.9 else away == 0)

    monkeypatch.setattr(localleap, "watch", watch)
    found = CliRunner().invoke(app, ["train", "localleap", "m", "--count", "4", "--length", "16", "--block", "8", "--batch", "2"])
    assert found.exit_code == 0, found.stderr
    assert calls == [{"prompts": 4, "length": 16, "block": 8, "anchor": 0.9, "batch": 2, "report": None}]
    assert "--method localleap:threshold=0.9,radius=1,relaxed=0.500" in found.stdout
    told = CliRunner().invoke(app, ["train", "localleap", "m", "--count", "4", "--anchor", "0.95"]).stdout
    assert "use --method threshold" in " ".join(told.split())
    told = json.loads(CliRunner().invoke(app, ["train", "localleap", "m", "--count", "4", "--json"]).stdout)
    assert told["method"] == "localleap:threshold=0.9,radius=1,relaxed=0.500"
    assert [row["final"] for row in told["distances"]] == [1, 0]
    assert sum(cell["count"] for cell in told["distances"][0]["by_confidence"]) == 40


def test_json_is_the_figures(asked: list[dict[str, Any]]) -> None:
    found = CliRunner().invoke(app, ["train", "learn2pd", "m", "--out", "f", "--count", "4", "--json"])
    told = json.loads(found.stdout)
    assert (told["block"], told["threshold"], told["records"]) == (8, 0.9, 800)
    assert len(asked[0]["prompts"]) == 4


def test_what_cannot_be_meant(asked: list[dict[str, Any]]) -> None:
    for arguments in (["--feature", "colour"], ["--loss-on", "some"], ["--length", "33"], ["--target", "2"]):
        found = CliRunner().invoke(app, ["train", "learn2pd", "m", "--out", "f", *arguments])
        assert found.exit_code == 2, arguments
        assert arguments[0].strip("-").replace("-", "_") in found.stderr
    assert not asked

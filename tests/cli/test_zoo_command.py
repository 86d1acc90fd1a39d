"""`paceline zoo build` passes its options on and shows what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.zoo import build as builder
from paceline.zoo.card import Card


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the builder was asked for; it answers with one card."""
    calls: list[dict[str, Any]] = []

    def build(names: list[str] | None, **options: Any) -> list[Card]:
        calls.append({"names": names, **options})
        facts = {"parameters": 5_500_000, "weight_bytes": 11_000_000, "tokens": 16_000_000, "epochs": 1.5, "steps": 4000, "seconds": 5400.0}
        texts = {"name": "pocket-code", "description": "d", "ended_by": "time"}
        rates = {"validation_bits_per_byte": 1.234, "lzma_bits_per_byte": 2.0, "acceptance_by_depth": None}
        return [Card(**texts, **facts, **rates, recipe={}, corpus={}, machine={}, samples=[])]  # type: ignore[arg-type]

    monkeypatch.setattr(builder, "build", build)
    return calls


def test_options_reach_the_builder(asked: list[dict[str, Any]]) -> None:
    arguments = ["pocket-code", "--work-dir", "w", "--out", "o", "--max-minutes", "7.5", "--device", "cpu", "--no-resume", "--smoke"]
    found = CliRunner().invoke(app, ["zoo", "build", *arguments])
    assert found.exit_code == 0, found.stderr
    (call,) = asked
    assert call == {
        "names": ["pocket-code"],
        "work_dir": Path("w"),
        "out": Path("o"),
        "max_minutes": 7.5,
        "device": "cpu",
        "resume": False,
        "progress": False,
        "smoke_size": True,
    }
    assert "5,500,000 parameters" in found.stdout
    assert "1.234 bits per byte" in found.stdout


def test_no_name_means_all(asked: list[dict[str, Any]]) -> None:
    assert CliRunner().invoke(app, ["zoo", "build"]).exit_code == 0
    assert asked[0]["names"] is None
    assert asked[0]["resume"] is True


def test_json_is_the_cards(asked: list[dict[str, Any]]) -> None:
    found = CliRunner().invoke(app, ["zoo", "build", "--json"])
    assert [card["name"] for card in json.loads(found.stdout)] == ["pocket-code"]
    assert asked[0]["progress"] is False


def test_an_unknown_model_is_a_usage_error() -> None:
    found = CliRunner().invoke(app, ["zoo", "build", "pocket-poetry"])
    assert found.exit_code == 2
    assert "pocket-poetry" in found.stderr

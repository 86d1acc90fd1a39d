"""`methods` and `models`: tables for people, JSON for programs, both from the registries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.core.registry import METHODS
from paceline.models.families import FAMILIES
from paceline.zoo import registry
from paceline.zoo.recipes import RECIPES


def output(*arguments: str) -> str:
    found = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.stderr
    assert found.stderr == ""
    return found.stdout


def test_methods_as_json_are_the_registry() -> None:
    rows = json.loads(output("methods", "--json"))
    assert [row["name"] for row in rows] == [method.name for method in METHODS]
    assert [(row["greedy"], row["sampling"]) for row in rows] == [(str(method.greedy), str(method.sampling)) for method in METHODS]


def test_methods_table_shows_name_guarantee_and_paper() -> None:
    table = output("methods")
    for method in METHODS:
        assert method.name in table
        assert method.summary in table
        assert method.paper in table
    assert "greedy: token-identical" in table


def test_models_as_json() -> None:
    found = json.loads(output("models", "--json"))
    assert [row["name"] for row in found["pocket"]] == list(RECIPES)
    assert [row["architecture"] for row in found["architectures"]] == [family.architecture for family in FAMILIES]


def test_models_say_what_is_built_and_how_to_build_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built, missing = list(RECIPES)[:2]
    (tmp_path / built).mkdir()
    (tmp_path / built / registry.WEIGHTS).write_bytes(b"x" * (3 << 20))
    monkeypatch.setattr(registry, "MODELS_FOLDER", tmp_path)
    rows = {row["name"]: row for row in json.loads(output("models", "--json"))["pocket"]}
    assert (rows[built]["available"], rows[built]["bytes"]) == (True, 3 << 20)
    assert (rows[missing]["available"], rows[missing]["bytes"]) == (False, None)
    table = output("models")
    assert "3.0 MiB" in table
    assert f"paceline zoo build {missing}" in table

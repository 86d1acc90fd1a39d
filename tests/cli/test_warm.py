"""`paceline warm`: texts and answers end up in a forest that drafts; mistakes are one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.engine.load import load

SPEC = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parents[1] / "e2e" / "conftest.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert SPEC is not None
    assert SPEC.loader is not None
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return str(module.save_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3))


def warm(*arguments: str) -> dict[str, object]:
    found = CliRunner().invoke(app, ["warm", *arguments, "--json"])
    assert found.exit_code == 0, found.stderr
    record: dict[str, object] = json.loads(found.stdout)
    return record


def forwards(model: str, forest: Path | None, tenant: str = "") -> int:
    option = "" if forest is None else f",forest={forest}"
    llm = load(model, f"lookahead:mode=hier_output,budget=fixed{option}", device="cpu", prefix_cache=False)
    return llm.generate("def name_3(value):", max_tokens=24, tenant=tenant)[0].stats.forwards


def test_answers_warm_a_forest_and_more_can_be_added(tiny: str, tmp_path: Path) -> None:
    forest, asked, text = tmp_path / "forest.npz", tmp_path / "prompts.txt", tmp_path / "text.py"
    asked.write_text("def name_3(value):\n\nclass Thing4:\n")
    text.write_text("def name_5(value):\n    return value\n" * 3)
    first = warm(tiny, str(forest), "--prompts", str(asked), "-n", "24")
    assert (first["answers"], first["tokens"], first["texts"]) == (2, 48, 0)
    assert forwards(tiny, forest) < forwards(tiny, None)
    second = warm(tiny, str(forest), "--text", str(text), "--scope", "a")
    assert second["scopes"] == ["", "a"]
    assert int(str(second["memory_bytes"])) > int(str(first["memory_bytes"]))
    assert forwards(tiny, forest, tenant="a") > forwards(tiny, forest)


def test_a_whole_file_can_be_one_prompt(tiny: str, tmp_path: Path) -> None:
    asked = tmp_path / "prompt.py"
    asked.write_text("a = 1\nb = 2\n")
    assert warm(tiny, str(tmp_path / "f"), "--prompts", str(asked), "--whole", "-n", "2")["answers"] == 1
    found = CliRunner().invoke(app, ["warm", tiny, str(tmp_path / "f"), "--text", str(asked)])
    assert found.exit_code == 0
    assert found.stdout == ""
    assert "learned" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--text FILE or --prompts FILE"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--text", "t", "--settings", "length=3"], "no option 'length'"),
        (["--text", "t", "--settings", "store=trie+none"], "method lookahead"),
    ],
)
def test_mistakes_are_one_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t").write_text("x")
    found = CliRunner().invoke(app, ["warm", tiny, "f.npz", *arguments])
    assert found.exit_code == 2
    assert said in found.stderr
    assert found.stderr.count("\n") == 1
    assert not Path("f.npz").exists()


def test_a_damaged_forest_is_not_overwritten(tiny: str, tmp_path: Path) -> None:
    forest, text = tmp_path / "f.npz", tmp_path / "t"
    forest.write_bytes(b"precious")
    text.write_text("x")
    found = CliRunner().invoke(app, ["warm", tiny, str(forest), "--text", str(text)])
    assert found.exit_code == 2
    assert forest.read_bytes() == b"precious"

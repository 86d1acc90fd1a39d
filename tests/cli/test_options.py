"""Options: prompts, biases, files; everything wrong is said with its option's name."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paceline
from paceline.cli.app import app
from paceline.cli.audit import read_prompts
from paceline.cli.console import finite
from paceline.cli.generate import read_prompt
from paceline.cli.options import bias_of
from paceline.core.errors import CheckpointError, UsageError
from paceline.zoo import registry


def test_logit_bias_reads_id_and_value() -> None:
    assert bias_of("42=-1.5") == (42, -1.5)
    assert bias_of("0=-inf") == (0, -math.inf)


@pytest.mark.parametrize("entry", ["42", "x=1", "42=", "1.5=2"])
def test_malformed_logit_bias_names_the_option(entry: str) -> None:
    with pytest.raises(UsageError, match="--logit-bias"):
        bias_of(entry)


def test_prompt_comes_from_text_ids_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("käse\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    assert read_prompt("text", None, None) == "text"
    assert read_prompt(None, str(file), None) == "käse\n"
    assert read_prompt(None, "-", None) == "piped"
    assert read_prompt(None, None, "1, 2 3") == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((None, None, None), "exactly one of --prompt, --prompt-file and --ids, not none"),
        (("x", None, "1"), "--prompt and --ids"),
        ((None, "no/such/file", None), "--prompt-file no/such/file"),
        ((None, None, "1 two"), "--ids"),
    ],
)
def test_wrong_prompts_name_their_options(given: tuple[str | None, str | None, str | None], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_prompt(*given)


def test_a_prompt_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompt(None, str(file), None)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '["text", [1, "x"]]', "[true]", "[[true]]"])
def test_audit_prompts_must_be_texts_or_ids(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="--prompts"):
        read_prompts(file)


def test_audit_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('["text", [1, 2]]', encoding="utf-8")
    assert read_prompts(file) == ["text", [1, 2]]


def test_a_pocket_model_that_is_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MODELS_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="paceline zoo build pocket-code"):
        paceline.load("pocket-code")
    for command in (["generate", "pocket-code", "-p", "x"], ["chat", "pocket-code"], ["audit", "pocket-code"], ["bench", "pocket-code"]):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 3
        assert found.stderr.count("\n") == 1
        assert "paceline zoo build pocket-code" in found.stderr


def test_a_folder_named_like_a_pocket_model_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MODELS_FOLDER", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket-code").mkdir()
    registry.require_built("pocket-code")


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--top-p", "0"], ["--min-p", "2"], ["--repetition-penalty", "0"]])
def test_sampling_out_of_range_is_a_usage_error(option: list[str]) -> None:
    found = CliRunner().invoke(app, ["generate", "m", "-p", "x", *option])
    assert found.exit_code == 2
    assert option[0].strip("-").replace("-", "_") in found.stderr


def test_numbers_without_json_word_become_null() -> None:
    assert finite({"a": [math.inf, 1.0, (math.nan,)], 3: "x"}) == {"a": [None, 1.0, [None]], "3": "x"}

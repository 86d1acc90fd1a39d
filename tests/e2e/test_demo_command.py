"""`paceline demo --quick` on a tiny model: table, JSON, picture and page agree."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app

FILES, TOKENS = 2, 48


@pytest.fixture(scope="module")
def demo(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and standard output of one run."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    arguments = ["demo", "--quick", "--model", tiny, "--draft", tiny, "--method", "draft-model:length=3"]
    found = CliRunner().invoke(app, [*arguments, "--temperature", "0", "--out", str(folder)], env={"COLUMNS": "160"})
    assert found.exit_code == 0, found.stderr
    return folder, found.stdout


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    return record


def test_the_table_shows_every_file_and_the_verdict(demo: tuple[Path, str]) -> None:
    folder, table = demo
    for prompt in record_of(folder)["prompts"]:
        assert f"{prompt['file']}:{prompt['line']}" in table
        assert prompt["verdict"] == "identical"
    assert f"{FILES}/{FILES} identical" in table
    assert "demo.html" in table


def test_the_record_adds_up(demo: tuple[Path, str]) -> None:
    record = record_of(demo[0])
    assert record["model"] == record["draft"] == "tiny"
    assert len(record["prompts"]) == FILES
    for prompt in record["prompts"]:
        assert sum(prompt["runs"]) == prompt["stats"]["output_tokens"] <= TOKENS
        assert len(prompt["runs"]) == prompt["stats"]["forwards"]
    assert record["tokens_per_forward"] > 2  # the model drafts for itself
    assert record["machine"]["packages"]["torch"]
    assert "/" not in record["model"]


def test_the_picture_is_a_png(demo: tuple[Path, str]) -> None:
    assert (demo[0] / "demo.png").read_bytes().startswith(b"\x89PNG\r\n")


class Reader(HTMLParser):
    """Text of each file's completion, the number of its runs, and references to other resources."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []
        self.texts: list[str] = []
        self.drafted: list[str] = []
        self.references: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [str(values[name]) for name in ("src", "href") if name in values]
        if tag in ("pre", "span", "u"):
            kind = (values.get("class") or tag).split()[0]
            self._inside.append(kind)
            if kind == "pre":
                self.runs.append(0)
                self.texts.append("")
                self.drafted.append("")
            self.runs[-1:] = [self.runs[-1] + (kind == "run")] if self.runs else []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "span", "u"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "run" in self._inside:
            self.texts[-1] += data
            if "u" in self._inside:
                self.drafted[-1] += data


def test_the_page_holds_the_text_run_by_run_and_needs_nothing_else(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    page = (folder / "demo.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    prompts = record_of(folder)["prompts"]
    assert reader.texts == [prompt["text"] for prompt in prompts]
    assert reader.runs == [len(prompt["runs"]) for prompt in prompts]
    for text, drafted in zip(reader.texts, reader.drafted, strict=True):
        assert 0 < len(drafted) < len(text)
    assert reader.references == []
    assert not re.search(r"https?://|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


def test_samples_are_identical_too(tiny: str, tmp_path: Path) -> None:
    arguments = ["--method", "prompt-lookup:min_ngram=1", "--temperature", "0.7", "--seed", "2", "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(app, ["demo", "--quick", "--model", tiny, *arguments])
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    assert (record["temperature"], record["seed"]) == (0.7, 2)
    assert [prompt["verdict"] for prompt in record["prompts"]] == ["identical"] * FILES
    assert sum(prompt["stats"]["drafted"] for prompt in record["prompts"]) > 0
    assert "sampled at temperature 0.7" in (tmp_path / "demo.html").read_text(encoding="utf-8")


def test_json_is_the_record(tiny: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["demo", "--quick", "--model", tiny, "--method", "none", "--out", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout) == record_of(tmp_path)
    assert json.loads(found.stdout)["tokens_per_forward"] == 1.0


def test_an_output_folder_that_cannot_be_made(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = CliRunner().invoke(app, ["demo", "--quick", "--model", tiny, "--out", str(tmp_path / "file" / "inside")])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: --out ")

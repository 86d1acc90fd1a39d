"""The command line on a diffusion model: text as from any other, a picture that fills in on a terminal, numbers in JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from diffusion_models import EOS, write
from rich.console import Console
from typer.testing import CliRunner

import paceline
from paceline.cli.app import app
from paceline.cli.filling import DECIDED, NEW, WAITING, Filling, watch
from paceline.engine.output import Chunk
from paceline.engine.prompts import Tokenizer


class Letters:
    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join("abcdefghij"[token] for token in ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("cli") / "llada", "llada"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_ids_and_statistics(folder: str) -> None:
    expected = paceline.load(folder, "static:block=4").generate([5, 6, 7], max_tokens=8, ignore_eos=True)[0]
    options = ("generate", folder, "--ids", "5 6 7", "-n", "8", "--ignore-eos", "-m", "static:block=4")
    shown = run(*options)
    assert shown.exit_code == 0, shown.stderr
    assert [int(word) for word in shown.stdout.split()] == expected.token_ids
    assert "8 tokens in 8 forwards (1.00 per forward)" in shown.stderr
    record = json.loads(run(*options, "--json").stdout)
    assert record["canvas"] == record["token_ids"] == expected.token_ids
    assert record["stats"]["rows"] == 8 * 11


def test_comparison_knows_what_is_approximate(folder: str) -> None:
    options = ("generate", folder, "--ids", "5 6 7", "-n", "16", "--ignore-eos", "--compare", "--json", "-m")
    lossy = json.loads(run(*options, "threshold:threshold=0,block=8").stdout)["compare"]
    assert lossy["identity_expected"] is False
    assert lossy["tokens_identical"] is False
    fewer = json.loads(run(*options, "static:per_step=4,block=8").stdout)["compare"]
    assert fewer["identity_expected"] is False
    same = json.loads(run(*options, "static:block=8").stdout)["compare"]
    assert same["identity_expected"] is True
    assert same["tokens_identical"] is True


def test_errors_are_one_line(folder: str) -> None:
    found = run("generate", folder, "--ids", "5 6 7", "-m", "lookahead")
    assert found.exit_code == 2
    assert "masked diffusion model" in found.stderr


def test_the_picture_fills_in() -> None:
    filling = Filling(Tokenizer(Letters()))
    filling.add(Chunk("", (), 0, filled=((4, 1),)))
    assert filling.stretches() == [("····", WAITING), ("b", NEW)]
    filling.add(Chunk("", (), 0, filled=((0, 2), (1, 3))))
    assert filling.stretches() == [("cd", NEW), ("··", WAITING), ("b", DECIDED)]
    assert Filling(None).stretches() == []


def test_watching_leaves_the_text_behind(folder: str) -> None:
    llm = paceline.load(folder, "threshold:block=4,threshold=0.3")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60)
    output = watch(console, llm.stream([5, 6, 7], max_tokens=8, ignore_eos=True), None)
    assert output is not None
    assert screen.getvalue().endswith(" ".join(map(str, output.token_ids)))
    assert "·" in screen.getvalue()


def test_the_checkpoint_ends_by_itself(tmp_path: Path) -> None:
    """Nothing is asked of the user: folder in, answer out."""
    llm = paceline.load(write(tmp_path, "sdar"))
    (output,) = llm.generate([[5, 6, 7]], paceline.Sampling(logit_bias={EOS: 30.0}), max_tokens=12)
    assert output.token_ids == [EOS]
    assert output.finish_reason == "stop"

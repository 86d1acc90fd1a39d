"""One smoke build of everything: the files it leaves load anywhere, and building again only repeats what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from paceline.core.errors import CheckpointError, UsageError
from paceline.zoo import build as building
from paceline.zoo.build import build, choose_device, default_work_dir
from paceline.zoo.card import Card
from paceline.zoo.training import CHECKPOINT


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("build")
    return base / "work", base / "out"


@pytest.fixture(scope="module")
def cards(folders: tuple[Path, Path]) -> list[Card]:
    work, out = folders
    made = build(["pocket-code-draft", "pocket-code"], work_dir=work, out=out, smoke_size=True, device="cpu", progress=False)
    return [card for card in made if isinstance(card, Card)]


def test_teacher_then_student(cards: list[Card]) -> None:
    assert [card.name for card in cards] == ["pocket-code", "pocket-code-draft"]
    teacher, student = cards
    assert teacher.acceptance_by_depth is None
    assert student.acceptance_by_depth is not None
    assert all(a >= b for a, b in zip(student.acceptance_by_depth, student.acceptance_by_depth[1:], strict=False))
    assert (teacher.ended_by, teacher.tokens, teacher.steps) == ("tokens", 8192, 16)


def test_exported_model_loads_with_transformers(cards: list[Card], folders: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for card in cards:
        folder = folders[1] / card.name
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype is torch.bfloat16
        assert model.num_parameters() == card.parameters
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer("def f(x):\n    return 12\n")["input_ids"]) == "def f(x):\n    return 12\n"
        assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 0


def test_exported_files_hold_no_paths_and_are_readable(cards: list[Card], folders: tuple[Path, Path]) -> None:
    for file in (folders[1] / "pocket-code").iterdir():
        assert file.stat().st_mode & 0o044 == 0o044
        if file.suffix in (".json", ".md", ".jinja"):
            assert str(folders[0].parent) not in file.read_text(encoding="utf-8")


def test_card_file_equals_card(cards: list[Card], folders: tuple[Path, Path]) -> None:
    for card in cards:
        folder = folders[1] / card.name
        assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(card)))
        shown = (folder / "README.md").read_text(encoding="utf-8")
        assert f"{card.parameters:,}" in shown
        assert card.corpus["sha256"] in shown
        assert f"{card.validation_bits_per_byte:.3f} bits per byte" in shown


def test_building_again_does_not_train_again(cards: list[Card], folders: tuple[Path, Path]) -> None:
    work, out = folders
    before = (out / "pocket-code-draft" / "model.safetensors").read_bytes()
    again = build(["pocket-code-draft"], work_dir=work, out=out, smoke_size=True, device="cpu", progress=False)
    (card,) = [card for card in again if isinstance(card, Card)]
    assert (card.name, card.steps, card.seconds) == (cards[1].name, cards[1].steps, cards[1].seconds)
    assert (out / "pocket-code-draft" / "model.safetensors").read_bytes() == before
    assert (work / "pocket-code-draft" / CHECKPOINT).is_file()


def test_student_without_teacher_says_what_to_do(
    cards: list[Card], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "MODELS_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="paceline zoo build pocket-code"):
        build(["pocket-code-draft"], work_dir=folders[0], out=tmp_path, smoke_size=True, device="cpu", progress=False)


@pytest.mark.parametrize("minutes", [0.0, -1.0])
def test_bad_time_limit_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UsageError, match="--max-minutes must be positive"):
        build(work_dir=tmp_path, max_minutes=minutes)


def test_unknown_model_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown pocket model"):
        build(["nope"], work_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_work_dir_follows_the_cache_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_work_dir() == tmp_path / "paceline" / "zoo"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_is_refused() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda")

"""A smoke build of the editing model and its drafter: files that load anywhere, cards that say what is in them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.core.errors import CheckpointError
from paceline.models.nat_files import load_nat
from paceline.zoo import build as building
from paceline.zoo import distil
from paceline.zoo.build import build
from paceline.zoo.edit_card import EditCard
from paceline.zoo.editor import START_ID
from paceline.zoo.nat_card import NatCard
from paceline.zoo.registry import MODELS_FOLDER

NAMES = ["pocket-edit-nat", "pocket-edit"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("edit-build")
    return base / "work", base / "out"


@pytest.fixture(scope="module")
def cards(folders: tuple[Path, Path]) -> list[Any]:
    """Both; the embedding comes from the shipped pocket-code."""
    return build(NAMES, work_dir=folders[0], out=folders[1], smoke_size=True, device="cpu", progress=False)


def test_verifier_then_drafter(cards: list[Any]) -> None:
    editor, drafter = cards
    assert isinstance(editor, EditCard)
    assert isinstance(drafter, NatCard)
    assert [row.rate for row in editor.quality] == [row.rate for row in drafter.drafting] == [0.02, 0.05, 0.1, 0.2]
    assert all(0 <= row.exact <= 1 and row.source_distance > 0 for row in editor.quality)
    for row in drafter.drafting:
        assert row.tokens_per_call >= 1
        assert all(a >= b - 1e-9 for a, b in zip(row.accepted_by_slot, row.accepted_by_slot[1:], strict=False)) or row.tokens_per_call > 1


def test_the_editor_loads_with_transformers(cards: list[Any], folders: tuple[Path, Path]) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = folders[1] / "pocket-edit"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.dtype is torch.bfloat16
    assert model.num_parameters() == cards[0].parameters
    ids = AutoTokenizer.from_pretrained(folder)("def f(x):\n", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3)[0, 0] == START_ID


def test_the_drafter_loads_and_counts(cards: list[Any], folders: tuple[Path, Path]) -> None:
    network = load_nat(folders[1] / "pocket-edit-nat")
    assert sum(parameter.numel() for parameter in network.parameters()) == cards[1].parameters


def test_cards_are_what_is_written(cards: list[Any], folders: tuple[Path, Path]) -> None:
    for card in cards:
        folder = folders[1] / card.name
        assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(card)))
        shown = (folder / "README.md").read_text(encoding="utf-8")
        assert f"{card.parameters:,}" in shown
        assert str(folders[0].parent) not in shown
        assert card.headline


def test_the_verifier_is_asked_for_its_outputs_once(
    cards: list[Any], folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(distil, "own_outputs", never)
    again = build(["pocket-edit-nat"], work_dir=folders[0], out=folders[1], smoke_size=True, device="cpu", progress=False)
    assert again[0].tokens == cards[1].tokens
    monkeypatch.setattr(building, "MODELS_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="paceline zoo build pocket-edit`"):
        build(["pocket-edit-nat"], work_dir=folders[0], out=tmp_path, smoke_size=True, device="cpu", progress=False)


def test_outputs_of_another_verifier_are_not_reused(cards: list[Any], folders: tuple[Path, Path]) -> None:
    """Negative control of the file's signature."""
    file = folders[0] / "pocket-edit-nat" / "distilled.json"
    signature = json.loads(file.read_text(encoding="utf-8"))["signature"]
    assert distil._kept(file, signature) is not None
    assert distil._kept(file, ["0" * 64, *signature[1:]]) is None


def test_shipped_models_stay_small() -> None:
    for name, most in (("pocket-edit", 7_000_000), ("pocket-edit-nat", 5_300_000)):
        file = MODELS_FOLDER / name / "model.safetensors"
        if file.is_file():  # built by `paceline zoo build`, which takes an hour
            assert file.stat().st_size < most

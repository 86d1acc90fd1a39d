"""The editing model and its drafter in the package: what their cards say, and what they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import paceline
from paceline.engine.llm import LLM
from paceline.models.nat_files import load_nat
from paceline.zoo.corpus import held_out_files
from paceline.zoo.edit_evaluation import edit_distance
from paceline.zoo.editor import load_editor
from paceline.zoo.network import parameter_count
from paceline.zoo.pairs import EditPairs, Pair
from paceline.zoo.registry import resolve
from paceline.zoo.tokenizer import load_tokenizer


def folder_of(name: str) -> Path:
    folder = resolve(name)
    assert folder is not None, f"{name} is not in the package"
    return folder


def damaged(rate: float) -> list[Pair]:
    """Held-out spans with a share of the words hit."""
    texts = [file.text for file in held_out_files()]
    return EditPairs(texts, load_tokenizer(folder_of("pocket-edit")), 5, (rate, rate)).pairs("test", 20, 64)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return damaged(0.05)


@pytest.fixture(scope="module")
def plain() -> LLM:
    return paceline.load("pocket-edit", "none", dtype="float32")


def answers(llm: LLM, pairs: list[Pair]) -> tuple[list[list[int]], float]:
    """Greedy outputs and tokens per forward."""
    outputs = [llm.generate([pair.source], max_tokens=96)[0] for pair in pairs]
    tokens, forwards = (sum(counts) for counts in zip(*((len(o.token_ids), o.stats.forwards) for o in outputs), strict=True))
    return [output.token_ids for output in outputs], tokens / forwards


@pytest.mark.parametrize("name", ["pocket-edit", "pocket-edit-nat"])
def test_card_tells_the_truth(name: str) -> None:
    folder = folder_of(name)
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    network = (load_nat if name.endswith("-nat") else load_editor)(folder)
    assert (card["name"], card["parameters"]) == (name, parameter_count(network))
    assert f"{card['parameters']:,}" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_editor_brings_text_closer_to_the_original(plain: LLM) -> None:
    pairs = damaged(0.1)
    outputs, _ = answers(plain, pairs)
    before = sum(edit_distance(pair.source, pair.target) for pair in pairs)
    after = sum(edit_distance([token for token in ids if token], pair.target) for ids, pair in zip(outputs, pairs, strict=True))
    assert after < 0.85 * before


def test_drafts_pay_and_tolerance_pays_more(plain: LLM, pairs: list[Pair]) -> None:
    """Exact matching keeps greedy output at several tokens per forward; wider tolerances give up identity for more of them."""
    wanted, _ = answers(plain, pairs)
    exact, base = answers(paceline.load(plain, "gad", draft="pocket-edit-nat"), pairs)
    assert exact == wanted  # no near-tie among these sources
    assert base >= 2.0
    speeds, agreement = [base], [1.0]
    for tau in (1.0, 3.0):
        found, speed = answers(paceline.load(plain, f"gad:beta=5,tau={tau:g}", draft="pocket-edit-nat"), pairs)
        speeds.append(speed)
        agreement.append(sum(a == b for a, b in zip(found, wanted, strict=True)) / len(pairs))
    assert speeds[0] <= speeds[1] <= speeds[2]  # the interpreter's own sources decide whether a small tolerance changes anything
    assert speeds[0] < speeds[2]
    assert agreement[0] >= agreement[1] >= agreement[2]
    assert agreement[2] < 1.0


def test_copying_pays(plain: LLM, pairs: list[Pair]) -> None:
    wanted, _ = answers(plain, pairs)
    found, speed = answers(paceline.load(plain, "iad"), pairs)
    assert found == wanted
    assert speed >= 4.0

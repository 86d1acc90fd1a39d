"""The translation task, and the benchmark on it with networks that have hardly been trained."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paceline.bench.translation import FIRST, LONGEST, ORDERS, SHORTEST, SYMBOLS, VOCABULARY, WINDOW, Translations
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "translation.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("translation_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pairs_are_translations_and_depend_on_seed_and_key_alone() -> None:
    data = Translations(3)
    assert sorted(data.table) == list(range(FIRST, VOCABULARY))
    pairs = data.pairs("x", 300)
    assert pairs == Translations(3).pairs("x", 300) != data.pairs("y", 300)
    assert {len(pair.source) for pair in pairs} == set(range(SHORTEST, LONGEST + 1))
    assert all(data.is_right(pair.source, pair.target) for pair in pairs)
    assert len({token for pair in pairs for token in pair.source}) == SYMBOLS
    assert not {END_OF_TEXT_ID, PAD_ID} & {token for pair in pairs for token in pair.source + pair.target}


def test_wrong_translations_are_told() -> None:
    data = Translations(0)
    source = list(range(FIRST, FIRST + 7))
    plain = [data.table[token - FIRST] for token in source]
    assert data.is_right(source, plain)
    assert data.is_right(source, [*(plain[at] for at in (1, 0, 2)), *(plain[at] for at in (4, 5, 3)), plain[6]])
    assert not data.is_right(source, [*(plain[at] for at in (2, 1, 0)), *plain[3:]])  # an order that there is not
    assert not data.is_right(source, plain[:-1])
    assert not data.is_right(source, None)


def test_the_majorities_of_the_slots_are_no_translation() -> None:
    """What makes references a bad teacher of slots that are filled independently; written token by token there is no such conflict."""
    data = Translations(1)
    seen = [Counter[int]() for _ in range(WINDOW)]
    after_first: Counter[int] = Counter()
    for pair in data.pairs("count", 1500):
        plain = [data.table[token - FIRST] for token in pair.source[:WINDOW]]
        if len(set(plain)) < WINDOW:
            continue
        places = [plain.index(token) for token in pair.target[:WINDOW]]
        for slot, place in enumerate(places):
            seen[slot][place] += 1
        if places[0] == 1:
            after_first[places[1]] += 1
    majority = tuple(counts.most_common(1)[0][0] for counts in seen)
    assert majority == (1, 1, 2)
    assert majority not in ORDERS
    assert (1, after_first.most_common(1)[0][0], 2) in ORDERS


def test_an_epoch_holds_every_pair_once() -> None:
    data = Translations(2, count=12)
    batches = [data.batch(step, 4, 40) for step in range(6)]
    targets = [tuple(row.tolist()) for batch in batches[:3] for row in batch.source]
    assert len(batches[0].source) == 4
    assert {tuple(token for token in row if token != PAD_ID) for row in targets} == {tuple(pair.source) for pair in data.training}
    assert any(not torch.equal(one.source, other.source) for one, other in zip(batches[:3], batches[3:], strict=True))


def test_the_benchmark_compares_two_teachers(script: ModuleType) -> None:
    """Hardly trained drafters draft badly, and the output is the model's all the same."""
    data = Translations(0, count=96)
    recipe = script.verifier_recipe(4)
    verifier, steps = script.trained(recipe, script.EditCourse(recipe, data, script.CPU))
    assert 3 <= steps <= 6
    tests = data.pairs("test", 3)
    rows = script.compare(data, verifier, 3, tests)
    assert [row["taught_by"] for row in rows] == ["the model's outputs", "references"]
    for row in rows:
        assert row["identical"] == row["sources"] == 3
        assert 2 <= row["steps"] <= 5
        assert 0 < row["forwards"] <= row["plain_forwards"]


def test_the_models_outputs_replace_the_references(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Translations(0, count=3)
    monkeypatch.setattr(script, "own_outputs", lambda verifier, pairs, longest: [[20], None, [21, 22]])
    material = script.distilled(torch.nn.Identity(), data.training)
    assert [pair.target for pair in material] == [[20], data.training[1].target, [21, 22]]
    assert [pair.source for pair in material] == [pair.source for pair in data.training]

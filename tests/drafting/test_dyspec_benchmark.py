"""The benchmark of dynamic trees measures what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from paceline.bench.trees import tree_methods
from paceline.core.registry import parse

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "dyspec.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dyspec_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_law_is_counted_beside_plain_sampling_and_a_control(script: ModuleType) -> None:
    rows = script.law_rows(3000, seed=1, mixed=0.8)
    assert [row["method"] for row in rows] == ["none", "threshold", "budget"]
    for row in rows:
        assert row["tokens"] == 3000
        assert abs(row["deviations"]) < 5
        assert row["control"] > 8
        assert 0 < row["variation"] < 0.25


def test_counts_of_another_law_stand_out(script: ModuleType) -> None:
    import torch

    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(2, 2, 3)
    assert script._deviations(1000 * law, law) < 0
    assert script._deviations(1000 * law.flip(-1), law) > 50


@pytest.mark.parametrize("nodes", [3, 8, 64, 768])
@pytest.mark.parametrize("sampled", [False, True])
def test_methods_are_of_one_size(nodes: int, sampled: bool) -> None:
    methods = tree_methods(nodes, "0.6/0.2", sampled)
    assert sum("replacement=true" in method for method in methods) == sampled
    assert sum("draws=sampled" in method for method in methods) == (not sampled)
    for method in methods:
        if "auto" not in method and method != "none":
            assert parse(method)[0].config().most_draft <= max(nodes, 4)


def test_the_best_static_tree_is_named(script: ModuleType) -> None:
    rates = {"none": 1.0, "draft-model:length=3": 2.0, "sequoia:nodes=8": 2.5, "dyspec:budget=8": 3.0, "dyspec:budget=auto": 1.5}
    row = script.best_static([{"method": method, "tokens_per_forward": rate} for method, rate in rates.items()])
    assert row["method"] == "best static: sequoia:nodes=8"
    assert row["dyspec_over_best_static"] == pytest.approx(1.2)

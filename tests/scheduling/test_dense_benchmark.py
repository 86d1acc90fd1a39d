"""The benchmark of batched speculation measures what it says, here on toy models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from dense_engines import noisy, prompts, target

from paceline.engine.llm import LLM
from paceline.engine.load import load

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "batch_speculation.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("batch_speculation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prompts_of = lambda target, kind, count, max_tokens, seed: prompts(count)  # the toy has no tokenizer
    return module


@pytest.fixture(scope="module")
def models() -> tuple[LLM, LLM]:
    base = target(eos=())
    return base, load(noisy(base, 0.2), "none", device="cpu", kv_tokens=4, pack=False)


def test_cost(script: ModuleType, models: tuple[LLM, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LENGTHS", ("random",))
    rows = script.cost_rows(*models, [4], count=16, length=3, max_tokens=10, rounds=2, seed=0)
    found = {row["strategy"]: row for row in rows}
    assert list(found) == list(script.ARMS)
    assert all(row["exact"] == row["partial"] == 1 for row in rows)
    assert found["plain"]["speedup"] == 1
    assert found["plain"]["tokens_per_step"] == 1
    assert found["ragged"]["copied_bytes"] == found["ragged"]["align"] == 0
    assert found["ragged"]["calls"] < found["pool"]["calls"] < found["eqspec"]["calls"] < found["rollback"]["calls"]
    assert found["rollback"]["copied_bytes"] < found["gap"]["copied_bytes"] < found["eqspec"]["copied_bytes"]
    assert found["pool"]["group_rate"] is None
    assert 0 < found["exspec"]["group_rate"] < 1
    for row in rows:
        assert row["draft"] + row["verify"] + row["align"] == pytest.approx(1)
        assert row["latency_p50"] <= row["latency_p99"]
        costs = [row[f"c_{part}"] for part in ("draft", "verify", "align")]
        assert row["model"] * sum(costs) == pytest.approx(row["tokens_per_call"] / found["plain"]["tokens_per_call"])
        assert (row["c_align"] > 0) == (row["strategy"] not in ("plain", "ragged"))
    assert found["plain"]["model"] == pytest.approx(1)


def test_the_cost_model(script: ModuleType) -> None:
    """Four tokens a call for a draft of a half, a verification of 1.2 and a quarter of alignment: 4 / 1.95."""
    plain = {"c_draft": 0.0, "c_verify": 0.02, "c_align": 0.0, "tokens_per_call": 8.0}
    found = script.modelled({"c_draft": 0.01, "c_verify": 0.024, "c_align": 0.005, "tokens_per_call": 32.0}, plain)
    assert found == pytest.approx({"c_draft": 0.5, "c_verify": 1.2, "c_align": 0.25, "model": 4 / 1.95})


def test_bonus(script: ModuleType, models: tuple[LLM, LLM]) -> None:
    (row,) = script.bonus_rows(*models, [2], count=8, max_tokens=20, seed=0)
    assert 0 < row["acceptance"] < 1
    assert row["ratio"] == pytest.approx(row["expected"], rel=0.15)


def test_acceptance_rate(script: ModuleType) -> None:
    """100 drafts of two tokens; 60 got past the first, 30 past the second: 90 accepted of 160 that were reached."""
    assert script._rate([100, 100], [60, 30]) == pytest.approx(90 / 160)


def test_faults(script: ModuleType, models: tuple[LLM, LLM]) -> None:
    rows = script.fault_rows(*models, batch=4, count=8, length=2, max_tokens=20, seed=0)
    right = [row for row in rows if row["fault"].startswith("nothing")]
    wrong = [row for row in rows if row not in right]
    assert len(right) == len(script.ARMS)
    assert [row["fault"] for row in wrong] == [fault.name for fault in script.FAULTS]
    assert {row["dtype"] for row in rows} == {"float64"}
    assert all(row["exact"] == row["partial"] == 1 for row in right)
    assert all(row["exact"] < 1 and row["partial"] < 1 for row in wrong)
    again = script.fault_rows(*models, batch=4, count=8, length=2, max_tokens=20, seed=0, broken=False)
    assert again == right

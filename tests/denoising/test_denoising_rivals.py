"""Commit rules beside plain thresholds: rows, what is said about them, pictures, and reliability by distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.bench.denoising_grounds import Ground
from paceline.bench.denoising_rivals import COLUMNS, Rival, rival_rows, verdicts
from paceline.bench.denoising_rivals_plot import plot_rivals
from paceline.bench.reliability import falls, reliability_rows, reliability_table
from paceline.bench.sort_reverse import ANSWER, EOS, Training, examples, train
from paceline.core.errors import UsageError
from paceline.denoising.localleap_calibration import BINS, Predictions
from paceline.engine.load import load

RIVALS = [
    Rival("static", "static"),
    Rival("threshold", "threshold:threshold=0.9"),
    Rival("threshold", "threshold:threshold=0.2"),
    Rival("localleap", "localleap:threshold=0.9,relaxed=0.25", "a leap"),
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    model = load(train(Training(steps=60, sequences=600, warm_up=10)), "static", device="cpu", kv_tokens=256, pack=False)
    prompts = examples(6, 1)[0].tolist()
    ground = Ground("/somewhere/else/toy", model, prompts, ANSWER, 8, frozenset({EOS}), lambda index, tokens: index < 3)
    told: list[tuple[int, int]] = []
    found = rival_rows(ground, RIVALS, 2, 0, lambda what, done, total: told.append((done, total)))
    assert told == [(index, 4) for index in range(4)]
    return found


def test_rows_are_held_against_thresholds(rows: list[dict[str, Any]]) -> None:
    assert [row["method"] for row in rows] == ["static", "threshold:threshold=0.9", "threshold:threshold=0.2", "a leap"]
    assert {row["model"] for row in rows} == {"toy"}
    assert [row["exact"] for row in rows] == [0.5] * 4
    assert rows[0]["fewer"] == rows[0]["agree"] == 1
    assert rows[2]["fewer"] > rows[1]["fewer"]
    assert all(row["lead"] is None for row in rows[:3])
    assert rows[1]["forwards"] >= rows[3]["forwards"] >= rows[2]["forwards"]
    assert rows[3]["lead"] is not None
    assert rows[3]["lead_right"] == 0
    assert all(column.cell(row) is not None for column in COLUMNS for row in rows)


def test_what_is_said(rows: list[dict[str, Any]]) -> None:
    sentences = verdicts(rows, ["localleap", "factor"])
    assert any(f"a leap takes {rows[3]['fewer']:.1f} times fewer forwards" in sentence for sentence in sentences) is (rows[3]["fewer"] >= 3)
    assert any("no setting of factor takes 3 times fewer" in sentence for sentence in sentences)
    assert any("of 1 settings of localleap" in sentence for sentence in sentences)
    ahead = [row | {"lead_interval": [0.01, 0.03], "lead": 0.02} if row["family"] == "localleap" else row for row in rows]
    assert any("1 agree measurably more" in sentence and "+0.0200" in sentence for sentence in verdicts(ahead, ["localleap"]))
    behind = [row | {"lead_interval": [-0.03, -0.01], "lead": -0.02} if row["family"] == "localleap" else row for row in rows]
    assert any("0 agree measurably more" in sentence and "1 less" in sentence for sentence in verdicts(behind, ["localleap"]))


def test_pictures(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (path,) = plot_rivals(rows, tmp_path / "new", "rules")
    assert path.name == "rules-toy-frontier.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another folder"):
        plot_rivals(rows, tmp_path / "file", "rules")


def test_reliability() -> None:
    """Near predictions are final, far ones are not; and the other way round."""
    distance, confidence = np.array([0.0, 1.0, 1.0, 6.0, 6.0, np.inf]), np.array([0.95, 0.8, 0.2, 0.8, 0.2, 0.5])
    found = reliability_rows(Predictions(confidence, distance, distance < 5), 0.02, 16)
    assert [(row["distance"], row["count"], row["final"]) for row in found] == [(1, 2, 1.0), (6, 2, 0.0)]
    assert [cell["count"] for cell in found[0]["by_confidence"]] == [1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert {cell["final"] for cell in found[0]["by_confidence"]} == {1.0, None}
    assert reliability_table("t", found).row_count == 2
    assert len(reliability_table("t", found).columns) == 3 + len(BINS)
    assert "it falls with the distance" in falls(found)
    assert "does not fall" in falls(reliability_rows(Predictions(confidence, distance, distance > 5), 0.02, 16))
    assert "cannot be told" in falls(found[:1])

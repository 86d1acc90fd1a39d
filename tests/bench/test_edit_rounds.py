"""What the editing benchmark makes of its rounds: ratios within a round, counts, and how much of a draft was for nothing."""

from __future__ import annotations

import pytest

from paceline.bench.audit.toy_pair import toy_pair
from paceline.bench.edit_rounds import Answers, answer, cell, rounds
from paceline.engine.load import load
from paceline.zoo.pairs import Pair

EOS = 5


def pair(source: list[int], target: list[int] | None = None) -> Pair:
    return Pair(source, target or source, 0.0, "", "")


def test_a_cell_compares_within_rounds() -> None:
    plain = [Answers([[1, 2], [3]], 2.0, forwards=5), Answers([[1, 2], [3]], 4.0, forwards=5)]
    fast = [
        Answers([[1, 2], [4]], 1.0, forwards=2, drafted=6, accepted=3, draft_seconds=0.25),
        Answers([[1, 2], [4]], 1.0, forwards=2, drafted=6, accepted=3, draft_seconds=0.75),
    ]
    peer = [Answers([[1, 2], [3]], 8.0), Answers([[1, 2], [3]], 8.0)]
    rows = {row["method"]: row for row in cell({"none": plain, "iad": fast, "peer": peer}, [pair([1, 2]), pair([3])])}
    assert rows["iad"]["speedup"] == 3  # of 2 and 4, not of the medians of times
    assert (rows["iad"]["identical"], rows["none"]["identical"]) == (1, 2)
    assert rows["iad"]["tokens_per_forward"] == 2.5  # two ends of text are tokens too
    assert rows["iad"]["rows_per_forward"] == 4
    assert rows["iad"]["wasted"] == rows["iad"]["draft_share"] == 0.5
    assert rows["none"]["wasted"] is None
    assert "forwards" not in rows["peer"]
    assert rows["peer"]["speedup"] == pytest.approx(0.375)


def test_answers_are_counted() -> None:
    """A toy that mostly copies: most of what is drafted stays, and what does not is counted as wasted."""
    target = load(toy_pair(24, seed=1, noise=0.4, eos=(EOS,)), "none", pack=False, device="cpu", kv_tokens=400)
    iad = load(target, "iad", device="cpu", kv_tokens=400)
    pairs = [pair([(7 * at + 3 * index) % 24 for at in range(4 + index)]) for index in range(12)]
    found = rounds({"none": lambda chosen: answer(target, chosen, 16), "iad": lambda chosen: answer(iad, chosen, 16)}, pairs, repeats=2)
    assert [len(answers) for answers in found.values()] == [2, 2]
    plain, fast = found["none"][0], found["iad"][0]
    assert plain.ids == fast.ids
    assert all(EOS not in ids for ids in fast.ids)
    assert plain.drafted == plain.accepted == 0
    assert 0 < fast.accepted < fast.drafted
    assert fast.forwards < plain.forwards
    assert 0 < fast.draft_seconds < fast.seconds
    (row,) = [row for row in cell(found, pairs) if row["method"] == "iad"]
    assert 0 < row["wasted"] < 1

"""Damage is seeded, proportional, and leaves layout alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.zoo.corruption import PIECES, corrupt

TEXT = "def double(self, value):\n    return self.value * 2  # twice\n" * 20


@given(st.text(max_size=80), st.integers(0, 5))
def test_no_damage_at_rate_zero(text: str, seed: int) -> None:
    damaged = corrupt(text, 0.0, Random(seed))
    assert (damaged.text, damaged.slips) == (text, 0)


@given(st.text(alphabet="ab (.\n", max_size=60), st.floats(0, 1), st.integers(0, 5))
def test_the_same_seed_gives_the_same_damage(text: str, rate: float, seed: int) -> None:
    assert corrupt(text, rate, Random(seed)) == corrupt(text, rate, Random(seed))


def test_other_seeds_give_other_damage() -> None:
    assert len({corrupt(TEXT, 0.1, Random(seed)).text for seed in range(10)}) == 10


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_the_share_of_pieces_hit_is_the_rate(rate: float) -> None:
    found = [corrupt(TEXT, rate, Random(seed)) for seed in range(40)]
    share = sum(damaged.slips for damaged in found) / sum(damaged.pieces for damaged in found)
    assert share == pytest.approx(rate, rel=0.15)
    assert found[0].rate == found[0].slips / found[0].pieces


@given(st.integers(0, 200))
def test_lines_stay_lines(seed: int) -> None:
    assert corrupt(TEXT, 0.5, Random(seed)).text.count("\n") == TEXT.count("\n")


def test_every_kind_of_slip_happens() -> None:
    """Shorter, longer and equally long texts all come out, and words vanish, double and change places."""
    word = "alpha beta"
    made = {corrupt(word, 1.0, Random(seed), ["gamma"]).text for seed in range(3000)}
    assert {"beta alpha", "alpha alpha beta beta", " ", "gamma gamma"} <= made
    assert any(len(text) == len(word) and sorted(text) == sorted(word) and text != word for text in made)


def test_pieces_cover_the_text() -> None:
    assert "".join(PIECES.findall(TEXT)) == TEXT

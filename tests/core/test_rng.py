"""Counter-based randomness: pure, uniform, and independent across seeds, positions, purposes and draws."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from paceline.core.rng import Purpose, key, uniform

SAMPLES = 20_000
CELLS = 64


def chi_square_is_plausible(counts: np.ndarray, expected: float) -> bool:
    """Within five standard deviations of the chi-square law's mean."""
    freedom = counts.size - 1
    return abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5


def stream(purpose: Purpose, seed: int = 7, draw: int = 0) -> np.ndarray:
    return np.array([uniform(seed, position, purpose, draw) for position in range(SAMPLES)])


def test_pure_and_in_range() -> None:
    numbers = [uniform(3, position, Purpose.TARGET) for position in range(1000)]
    assert numbers == [uniform(3, position, Purpose.TARGET) for position in range(1000)]
    assert all(0 <= number < 1 for number in numbers)


def test_values_are_pinned() -> None:
    """Outputs sampled with a seed must not change between releases."""
    assert key(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 for state 0
    assert uniform(0, 0, Purpose.TARGET) == 0.8513026201288322
    assert uniform(7, 100, Purpose.ACCEPT, 3) == 0.8457943443237088


def test_keys_depend_on_every_word_and_their_order() -> None:
    assert len({key(1, 2), key(2, 1), key(1, 2, 0), key(1), key(2), key(-1)}) == 6
    assert key(0) == key(1 << 64)  # words have 64 bits


@pytest.mark.parametrize("purpose", list(Purpose))
def test_uniform_over_positions(purpose: Purpose) -> None:
    counts, _ = np.histogram(stream(purpose), bins=CELLS, range=(0, 1))
    assert chi_square_is_plausible(counts, SAMPLES / CELLS)


def test_uniform_over_neighbouring_seeds_and_draws() -> None:
    for numbers in (
        [uniform(seed, 5, Purpose.TARGET) for seed in range(SAMPLES)],
        [uniform(5, 5, Purpose.ACCEPT, draw) for draw in range(SAMPLES)],
    ):
        counts, _ = np.histogram(numbers, bins=CELLS, range=(0, 1))
        assert chi_square_is_plausible(counts, SAMPLES / CELLS)


def test_streams_are_pairwise_independent() -> None:
    """The joint law of two streams is uniform on the square: purposes, draws, seeds, and a position against the next one."""
    streams = [stream(purpose) for purpose in Purpose]
    streams += [stream(Purpose.ACCEPT, draw=1), stream(Purpose.TARGET, seed=8), np.roll(stream(Purpose.TARGET), 1)]
    for first, second in combinations(streams, 2):
        counts, _, _ = np.histogram2d(first, second, bins=8, range=((0, 1), (0, 1)))
        assert chi_square_is_plausible(counts, SAMPLES / 64)


def test_the_check_catches_a_shared_stream() -> None:
    numbers = stream(Purpose.TARGET)
    counts, _, _ = np.histogram2d(numbers, numbers, bins=8, range=((0, 1), (0, 1)))
    assert not chi_square_is_plausible(counts, SAMPLES / 64)

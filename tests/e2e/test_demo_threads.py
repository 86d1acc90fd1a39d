"""One thread where several are slower, all cores otherwise, and the user's choice above both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from paceline.demo.threads import settle_threads


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    yield
    torch.set_num_threads(before)


def machine(alone: float, together: float) -> float:
    """Seconds a piece of work takes with the threads torch has now."""
    return alone if torch.get_num_threads() == 1 else together


def test_a_quiet_machine_uses_its_cores() -> None:
    assert settle_threads(lambda: machine(1.0, 0.6)) == torch.get_num_threads() == 2


def test_a_busy_machine_uses_one_thread() -> None:
    assert settle_threads(lambda: machine(1.0, 100.0)) == torch.get_num_threads() == 1


def test_a_small_difference_is_noise() -> None:
    assert settle_threads(lambda: machine(1.0, 1.2)) == 2


def test_the_users_choice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert settle_threads(lambda: machine(1.0, 0.1)) == 1

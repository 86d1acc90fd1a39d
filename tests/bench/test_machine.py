"""Machine descriptions and clocks."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from paceline.bench.machine import describe_machine, machine_slug
from paceline.bench.machine_clock import Timing, interleave, time_calls


def test_description_is_json_without_paths_or_host_names() -> None:
    machine = describe_machine()
    text = json.dumps(machine)
    assert machine["cpu"]["cores"] >= 1
    assert machine["cpu"]["model"]
    assert machine["packages"]["torch"]
    assert machine["torch"]["threads"] >= 1
    assert str(Path.home()) not in text
    assert str(Path(__file__).resolve().parents[2]) not in text
    if (host := socket.gethostname()) not in ("localhost", ""):
        assert host not in text


@pytest.mark.parametrize(
    ("machine", "slug"),
    [
        ({"cpu": {"model": "Fast(R) Chip @ 3.1GHz", "cores": 2}}, "fast-r-chip-3-1ghz-2c"),
        ({"cpu": {"model": "any", "cores": 8}, "gpu": {"model": "Big GPU 80GB"}}, "big-gpu-80gb"),
    ],
)
def test_slug_is_a_file_name(machine: dict[str, dict[str, object]], slug: str) -> None:
    assert machine_slug(machine) == slug


def test_timing_reports_median_and_best() -> None:
    timing = Timing((0.3, 0.1, 0.9))
    assert (timing.median, timing.best) == (0.3, 0.1)


def test_time_calls_measures_the_call_and_leaves_out_the_warm_up() -> None:
    naps = iter([0.2, 0.01, 0.01, 0.01])
    timing = time_calls(lambda: time.sleep(next(naps)), 3, warmup=1)
    assert len(timing.samples) == 3
    assert 0.01 <= timing.best <= timing.median < 0.2


def test_no_repeats_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 repeats"):
        time_calls(lambda: None, 0)


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    found = interleave({"a": lambda: contender("a", 1.0), "b": lambda: contender("b", 2.0)}, rounds=3)
    assert order == ["a", "b"] * 3
    assert found["b"].median == 2 * found["a"].median

"""Floors: the arithmetic on made-up limits, and that the readers read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from paceline.bench import floor
from paceline.bench.floor import (
    READERS,
    SMALLEST_BYTES,
    Bandwidth,
    Limits,
    copy_bandwidth,
    forward_floor,
    measure_limits,
    peak_flops,
    read_bandwidth,
)
from paceline.bench.machine_clock import Timing
from paceline.core.errors import UsageError

LIMITS = Limits("cpu", 2, (Bandwidth(1_000_000, 100e9, "sum"), Bandwidth(1_000_000_000, 10e9, "dot")), {"float32": 1e9, "bfloat16": 4e9})


@pytest.mark.parametrize(
    ("weights", "kv", "flops", "dtype", "seconds"),
    [
        (900_000_000, 100_000_000, 0, torch.float32, 0.1),  # memory bound, main memory
        (900_000, 100_000, 0, torch.float32, 1e-5),  # memory bound, in cache: ten times the bandwidth
        (900_000, 100_000, 2e9, torch.float32, 2.0),  # compute bound
        (900_000, 100_000, 2e9, torch.bfloat16, 0.5),
    ],
)
def test_floor_is_the_slower_of_bytes_and_operations(weights: int, kv: int, flops: float, dtype: torch.dtype, seconds: float) -> None:
    assert forward_floor(weights, kv, flops, LIMITS, dtype) == pytest.approx(seconds)


def test_bandwidth_is_that_of_the_nearest_working_set_as_a_ratio() -> None:
    assert LIMITS.bandwidth(20_000_000) == 100e9
    assert LIMITS.bandwidth(40_000_000) == 10e9


def test_a_dtype_without_a_peak_is_named() -> None:
    with pytest.raises(UsageError, match="float16"):
        LIMITS.peak(torch.float16)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_reads_to_the_last_byte(name: str) -> None:
    numbers = torch.ones(SMALLEST_BYTES // 4)
    before = READERS[name](numbers)().clone()
    numbers[-1] = 5.0
    assert not torch.equal(before, READERS[name](numbers)())


def test_measured_bandwidth_is_of_the_asked_working_set() -> None:
    found = read_bandwidth(1_000_001, repeats=3)
    assert 1_000_001 <= found.working_set < 1_000_001 + 4096
    assert found.reader in READERS
    assert 1e6 < found.bytes_per_second < 1e13


def test_readers_and_sizes_are_checked() -> None:
    with pytest.raises(UsageError, match="'guess'"):
        read_bandwidth(1 << 20, readers=("guess",))
    with pytest.raises(UsageError, match="positive"):
        read_bandwidth(0)
    with pytest.raises(UsageError, match="positive"):
        LIMITS.bandwidth(0)


def test_limits_of_this_machine_make_a_record() -> None:
    limits = measure_limits([1 << 19], dtypes=(torch.float32,), repeats=3, main_memory=False)
    assert json.loads(json.dumps(limits.to_json()))["threads"] == torch.get_num_threads()
    assert [point.working_set for point in limits.bandwidths] == [1 << 19]
    assert forward_floor(1 << 19, 0, 1e6, limits, torch.float32) > 0


def test_half_precision_is_never_slower_than_widening_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control for a floor that our own kernels could beat."""
    seconds = {torch.float32: 1.0, torch.bfloat16: 3.0}

    def timed(call: Callable[[], torch.Tensor], *args: object, **options: object) -> Timing:
        return Timing((seconds[call().dtype],))

    monkeypatch.setattr(floor, "time_calls", timed)
    shapes = ((2, 4),)
    assert peak_flops(torch.bfloat16, shapes=shapes) == peak_flops(torch.float32, shapes=shapes) == 2 * 2 * 4 * 4
    seconds[torch.bfloat16] = 0.5
    assert peak_flops(torch.bfloat16, shapes=shapes) == 2 * peak_flops(torch.float32, shapes=shapes)


def test_peak_and_copy_are_plausible() -> None:
    assert 1e6 < peak_flops(torch.float32, shapes=((64, 128),), repeats=3) < 1e16
    assert 1e6 < copy_bandwidth(1 << 20, repeats=3) < 1e13

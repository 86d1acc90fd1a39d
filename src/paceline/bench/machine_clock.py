"""Clocks: how long a call takes, on the host or on a CUDA stream, and how contenders are timed so that their ratio holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated calls."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample: what to report."""
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        """The fastest sample: what the machine can do when nobody else wants it."""
        return min(self.samples)


def time_calls(call: Callable[[], object], repeats: int, *, warmup: int = 1, device: str = "cpu") -> Timing:
    """Time `repeats` calls one by one, after `warmup` untimed ones; on CUDA with events of the stream, without waiting in between.

    Raises:
        ValueError: if `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} repeats measure nothing")
    for _ in range(warmup):
        call()
    return _cuda(call, repeats, device) if device.startswith("cuda") else _host(call, repeats)


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, *, rest: float = 0.0) -> dict[str, Timing]:
    """Measure every contender once per round, A B C A B C, so that drift of the machine falls on all alike and ratios hold.

    Args:
        contenders: name to a call that measures once and returns seconds.
        rounds: samples per contender.
        rest: seconds to sleep before each measurement; lets idle worker threads of the contender before stop spinning.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            time.sleep(rest)
            samples[name].append(measure())
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _host(call: Callable[[], object], repeats: int) -> Timing:
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return Timing(tuple(samples))


def _cuda(call: Callable[[], object], repeats: int, device: str) -> Timing:
    import torch

    with torch.cuda.device(device):
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for start, stop in marks:
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        return Timing(tuple(start.elapsed_time(stop) / 1000 for start, stop in marks))

"""The floor under a forward: bytes that must move over measured bandwidth, operations over measured peak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.bench.machine_clock import time_calls
from paceline.core.errors import UsageError

MAIN_MEMORY_BYTES = 1 << 30  # several times the caches of most machines, virtual ones that report 260 MB included
SMALLEST_BYTES = 1 << 18  # below this a call measures its own dispatch
COLUMNS = 1024
CPU_PRODUCTS, CUDA_PRODUCTS = ((256, 2048), (1024, 1024), (1536, 1536)), ((4096, 4096), (8192, 8192))


def _matvec(numbers: Tensor) -> Callable[[], Tensor]:
    matrix, vector = numbers.view(-1, COLUMNS), torch.ones(COLUMNS, dtype=numbers.dtype, device=numbers.device)
    return lambda: torch.mv(matrix, vector)


# Kernels that read every byte once and write next to nothing. Which is fastest depends on the machine and on the size, so all are tried:
# a floor made with a slow reader would flatter us.
READERS: dict[str, Callable[[Tensor], Callable[[], Tensor]]] = {
    "sum": lambda numbers: numbers.sum,
    "dot": lambda numbers: lambda: torch.dot(numbers, numbers),
    "matvec": _matvec,
}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Measured read bandwidth of one working set.

    Args:
        working_set: bytes read again and again. A set that fits a cache is read at the bandwidth of that cache.
        bytes_per_second: of the fastest reader, from the median of its calls.
        reader: which kernel that was.
    """

    working_set: int
    bytes_per_second: float
    reader: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device was measured to do at most.

    Args:
        device: `"cpu"` or a CUDA device.
        threads: intra-operation threads of the measurement.
        bandwidths: read bandwidth at several working sets, ascending.
        peak_flops: multiply-add operations (two each) per second by dtype name, of the best matrix product tried.
    """

    device: str
    threads: int
    bandwidths: tuple[Bandwidth, ...]
    peak_flops: dict[str, float]

    def bandwidth(self, working_set: int) -> float:
        """Bytes per second at the measured working set nearest to `working_set` (as a ratio)."""
        if working_set <= 0:
            raise UsageError(f"a working set of {working_set} bytes has no bandwidth; give a positive number of bytes")
        nearest = min(self.bandwidths, key=lambda point: max(point.working_set, working_set) / min(point.working_set, working_set))
        return nearest.bytes_per_second

    def peak(self, dtype: torch.dtype) -> float:
        """Operations per second in `dtype`.

        Raises:
            UsageError: if the dtype was not measured.
        """
        name = dtype_name(dtype)
        if name not in self.peak_flops:
            raise UsageError(f"no peak was measured for dtype {name!r}; measured: {', '.join(self.peak_flops)}")
        return self.peak_flops[name]

    def to_json(self) -> dict[str, Any]:
        """For result records."""
        return asdict(self)


def dtype_name(dtype: torch.dtype) -> str:
    """`"float32"` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def read_bandwidth(
    working_set: int = MAIN_MEMORY_BYTES, *, device: str = "cpu", repeats: int = 7, readers: Sequence[str] = tuple(READERS)
) -> Bandwidth:
    """Read bandwidth of all threads over a working set of `working_set` bytes.

    A pocket model lives in a cache, so its floor is only honest with the bandwidth measured at a working set as large as its weights; the
    default is that of main memory.

    Args:
        working_set: bytes; rounded up to whole rows of 4 KiB and to at least 256 KiB.
        repeats: calls per reader; the median counts.
        readers: kernels to try.

    Raises:
        UsageError: for an unknown reader or a working set that is not positive.
    """
    if working_set <= 0:
        raise UsageError(f"a working set of {working_set} bytes cannot be read; give a positive number of bytes")
    if unknown := set(readers) - set(READERS):
        raise UsageError(f"unknown reader {min(unknown)!r}; known: {', '.join(READERS)}")
    row = COLUMNS * torch.float32.itemsize
    size = max(working_set, SMALLEST_BYTES)
    numbers = torch.ones(-(-size // row) * COLUMNS, device=device)  # ones, not empty: untouched pages all map to one page of zeros
    seconds = {name: time_calls(READERS[name](numbers), repeats, warmup=2, device=device).median for name in readers}
    fastest = min(seconds, key=lambda name: seconds[name])
    return Bandwidth(numbers.nbytes, numbers.nbytes / seconds[fastest], fastest)


def copy_bandwidth(working_set: int = MAIN_MEMORY_BYTES, *, device: str = "cpu", repeats: int = 5) -> float:
    """Bytes read plus bytes written per second of a plain copy of half the working set onto the other half."""
    half = max(working_set, SMALLEST_BYTES) // 2 // 4
    source, target = torch.ones(half, device=device), torch.ones(half, device=device)
    seconds = time_calls(lambda: target.copy_(source), repeats, warmup=1, device=device).median
    return 2 * source.nbytes / seconds


def peak_flops(dtype: torch.dtype, *, device: str = "cpu", shapes: Sequence[tuple[int, int]] | None = None, repeats: int = 5) -> float:
    """Operations per second of the best matrix product tried (a multiply-add is two operations).

    On a CPU, half precision is tried in float32 too: numbers can be widened before they are multiplied, and without matrix instructions
    torch's own half precision products can be the slower ones. A peak that our kernels could beat would be no floor.

    Args:
        shapes: rows and sides to try: `(rows, side)` times `(side, side)`; by default such as fill the device and end within a second.
    """
    cuda = device.startswith("cuda")
    shapes = shapes or (CUDA_PRODUCTS if cuda else CPU_PRODUCTS)
    rates = [
        2 * rows * side**2 / time_calls(product, repeats, device=device).median
        for kind in dict.fromkeys((dtype, dtype if cuda else torch.float32))
        for rows, side in shapes
        for product in _products(rows, side, kind, device)
    ]
    return max(rates)


def _products(rows: int, side: int, dtype: torch.dtype, device: str) -> Iterator[Callable[[], Tensor]]:
    """A product with a weight stored either way round."""
    left, right = torch.randn(rows, side, device=device).to(dtype), torch.randn(side, side, device=device).to(dtype)
    yield lambda: torch.mm(left, right)
    yield lambda: torch.nn.functional.linear(left, right)


def measure_limits(
    working_sets: Sequence[int] = (),
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    device: str = "cpu",
    repeats: int = 7,
    main_memory: bool = True,
) -> Limits:
    """Measure a device: bandwidth at each working set, peak of each dtype.

    Args:
        working_sets: bytes of the weights (plus KV) of the models whose floor is wanted.
        main_memory: measure at 1 GiB as well.
    """
    sizes = sorted({*working_sets, *([MAIN_MEMORY_BYTES] if main_memory else [])})
    points = tuple(read_bandwidth(size, device=device, repeats=repeats) for size in sizes)
    peaks = {dtype_name(dtype): peak_flops(dtype, device=device) for dtype in dtypes}
    return Limits(device, torch.get_num_threads(), points, peaks)


def forward_floor(weight_bytes: int, kv_bytes: int, flops: float, limits: Limits, dtype: torch.dtype) -> float:
    """Seconds that no forward can beat: every weight and every remembered key and value is read once, every operation done at peak.

    Args:
        weight_bytes: weights that the forward reads (a token embedding that is only gathered from does not count).
        kv_bytes: keys and values of the context.
        flops: operations, a multiply-add counted as two.
        limits: what the device was measured to do.
        dtype: in which the operations are done.
    """
    moved = weight_bytes + kv_bytes
    return max(moved / limits.bandwidth(moved), flops / limits.peak(dtype))

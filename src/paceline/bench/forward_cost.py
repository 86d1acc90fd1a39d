"""Cost of a forward by number of rows and context length: paceline, its peers and the floor, in turns in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from paceline.bench.floor import READERS, peak_flops, read_bandwidth
from paceline.bench.forward_cost_models import SEED, ForwardWork, prepare
from paceline.bench.gguf import LlamaShape
from paceline.bench.machine_clock import interleave, time_calls
from paceline.bench.peers_base import Peer
from paceline.bench.peers_llamacpp import LlamaCppPeer
from paceline.bench.peers_paceline import PacelinePeer
from paceline.bench.peers_transformers import TransformersPeer
from paceline.bench.report import Column, Record
from paceline.core.errors import UsageError

FLOOR = "floor"
REST = 0.002  # seconds between contenders: OpenMP threads of the one before spin about that long
MODELS = ("pocket-code", "llama-110m")
DTYPES = ("float32", "bfloat16")
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (0, 128, 512, 1024, 2048)
STANDARD = ("paceline", "transformers", "llama.cpp")

CONTENDERS: dict[str, Callable[[str, int], Peer]] = {
    "paceline": lambda device, repeats: PacelinePeer(device=device, repeats=repeats),
    "paceline/exact": lambda device, repeats: PacelinePeer(device=device, repeats=repeats, exact=True),
    "transformers": lambda device, repeats: TransformersPeer(device=device, repeats=repeats),
    "llama.cpp": lambda device, repeats: LlamaCppPeer(repeats=repeats),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Args:
        models: as `prepare` takes them.
        dtypes: torch names.
        rows, contexts: every pair is measured.
        contenders: keys of `CONTENDERS`; those that are not available are left out, with a note.
        rounds: turns of every contender; the median over rounds is reported.
        repeats: timed forwards per turn, the median of which is one sample.
        threads: per contender.
        device: `"cpu"`, or a CUDA device.

    Raises:
        UsageError: for an unknown contender.
    """

    models: Sequence[str] = MODELS
    dtypes: Sequence[str] = DTYPES
    rows: Sequence[int] = ROW_COUNTS
    contexts: Sequence[int] = CONTEXTS
    contenders: Sequence[str] = STANDARD
    rounds: int = 3
    repeats: int = 3
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.contenders if name not in CONTENDERS]:
            raise UsageError(f"unknown contender {unknown[0]!r}; known: {', '.join(CONTENDERS)}")


class Floor:
    """The floor as a contender: reads as many bytes as a forward must, each time anew, so that it drifts with the others.

    Args:
        work: bytes and operations of the model.
        dtype: of weights and arithmetic.
        longest: context of the largest working set.
    """

    def __init__(self, work: ForwardWork, dtype: torch.dtype, longest: int, device: str, repeats: int) -> None:
        self.work, self.itemsize, self.device, self.repeats = work, dtype.itemsize, device, repeats
        self.peak = peak_flops(dtype, device=device)
        largest = work.weight_bytes(dtype.itemsize) + work.kv_bytes(longest, dtype.itemsize)
        self.reader = read_bandwidth(largest, device=device).reader
        self.numbers = torch.ones(largest // 4 + 1024, device=device)

    def forward_cost(self, rows: int, context: int) -> float:
        """Seconds that no forward can beat (see `floor.forward_floor`), from bandwidth measured now at this very working set."""
        size = self.work.weight_bytes(self.itemsize) + self.work.kv_bytes(context, self.itemsize)
        numbers = self.numbers[: -(-size // 4096) * 1024]
        moved = time_calls(READERS[self.reader](numbers), self.repeats, warmup=1, device=self.device).median
        return max(moved * size / numbers.nbytes, self.work.flops(rows, context) / self.peak)


def measure(plan: Plan, report: Callable[[str], None] = lambda line: None) -> Record:
    """Measure everything in the plan.

    Args:
        report: called with a line of progress now and then.

    Raises:
        UsageError, CheckpointError: for models that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in plan.models:
            folder = prepare(model, Path(scratch), max(plan.contexts) + max(plan.rows))
            work = ForwardWork.of(LlamaShape.read(folder))
            for dtype in plan.dtypes:
                report(f"{model} {dtype}")
                rows.extend({"model": model, "dtype": dtype} | row for row in _measure_model(plan, folder, work, dtype, notes))
    return Record("forward-cost", rows, asdict(plan), {"weights": SEED}, notes=tuple(dict.fromkeys(notes)))


def _measure_model(plan: Plan, folder: Path, work: ForwardWork, dtype: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of one model in one dtype, one per contender, context and number of rows."""
    peers: dict[str, Peer] = {}
    for name in plan.contenders:
        peer = CONTENDERS[name](plan.device, plan.repeats)
        reason = peer.available() or ("runs on CPU only here" if name == "llama.cpp" and plan.device != "cpu" else None)
        if reason:
            notes.append(f"{name} left out: {reason}")
            continue
        peer.load(folder, dtype, plan.threads)
        peers[name] = peer
    floor = Floor(work, getattr(torch, dtype), max(plan.contexts), plan.device, plan.repeats)
    try:
        for context in sorted(plan.contexts):
            for count in plan.rows:
                yield from _measure_cell(
                    plan, {FLOOR: floor.forward_cost, **{name: peer.forward_cost for name, peer in peers.items()}}, count, context
                )
    finally:
        for peer in peers.values():
            peer.close()


def _measure_cell(plan: Plan, contenders: Mapping[str, Callable[[int, int], float]], rows: int, context: int) -> Iterator[dict[str, Any]]:
    turns = {name: lambda cost=cost: cost(rows, context) for name, cost in contenders.items()}
    found = interleave(turns, plan.rounds, rest=REST)
    for name, timing in found.items():
        yield {
            "context": context,
            "rows": rows,
            "contender": name,
            "seconds": timing.median,
            "best_seconds": timing.best,
            "over_floor": timing.median / found[FLOOR].median,
        }


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per model, dtype, context and number of rows, with milliseconds of each contender under its name and its ratio to the floor
    under `NAME/floor`."""
    merged: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        place = {key: row[key] for key in ("model", "dtype", "context", "rows")}
        cell = merged.setdefault(tuple(place.values()), place)
        cell[row["contender"]] = 1000 * row["seconds"]
        cell[f"{row['contender']}/floor"] = row["over_floor"]
    return list(merged.values())


def table_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns of `table_rows`: each contender's milliseconds with, in brackets, how many times the floor that is."""
    names = dict.fromkeys(row["contender"] for row in rows)

    def cell(name: str) -> Callable[[Mapping[str, Any]], str]:
        def text(row: Mapping[str, Any]) -> str:
            if name not in row:
                return ""
            return f"{row[name]:.3g}" if name == FLOOR else f"{row[name]:.3g} ({row[f'{name}/floor']:.2f}x)"

        return text

    places = [
        Column("model", "model", numeric=False),
        Column("dtype", "dtype", numeric=False),
        Column("context", "context"),
        Column("rows", "rows"),
    ]
    return [*places, *(Column(f"{name} ms", cell(name)) for name in names)]

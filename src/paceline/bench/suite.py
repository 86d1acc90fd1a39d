"""`run_bench`: methods x workloads x batch sizes on one model, as a record that grows on disk and can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from paceline.bench.machine import describe_machine
from paceline.bench.peers_base import Peer
from paceline.bench.report import Record, public_name, read_record
from paceline.bench.runner import PLAIN, Cell, Contender, Memory, MethodContender, PeerContender, label, run_cell
from paceline.bench.workloads import Workload, find_workloads
from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.denoising.base import canvases
from paceline.drafting.base import largest_draft
from paceline.engine.batching import parse_batching
from paceline.engine.llm import LLM
from paceline.engine.load import load

NAME = "decode"
SPARE = 64  # KV slots per sequence beyond prompt, output and draft
Progress = Callable[[str, int, int], None]
NOTES = (
    "tokens_per_second counts decoding only: tokens after every sequence of a batch had its first one.",
    "speedup is the median over repeats of the ratio to plain decoding (method none) in the same round; contenders take turns.",
    "End-of-sequence ids do not end an output, so that all contenders do the same work.",
    "Sampled workloads use coupled randomness, so that outputs can be compared with plain decoding token for token; best-of-N does not.",
    "Methods that remember text start every round with empty memory; (warm) ones have answered other prompts of the same kind before, "
    "(replay) ones the very same prompts. Within a round, memory lasts from one prompt to the next where the method shares it.",
    "best-of-N decodes that many samples of one prompt, `batch` of them together, and then goes on to the next prompt.",
)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured and how often.

    Args:
        methods: method strings; plain decoding is always measured too, as the base of every ratio.
        workloads: names; `None` is all.
        batches: sequences decoded together.
        memories: what methods that remember text know when a round begins; others are measured once.
        prompts: per workload; rounded up to whole batches. Of best-of-N, so many fewer that about as many outputs are made, two at least.
        max_tokens: per prompt, exact.
        repeats: timed rounds.
        seed: of random prompts and of sampling.
        batching: how methods put sequences into one forward; plain decoding, the base of ratios, uses token slots.
    """

    methods: tuple[str, ...] = ("auto",)
    workloads: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 4, 8, 16)
    memories: tuple[Memory, ...] = ("cold", "warm")
    prompts: int = 8
    max_tokens: int = 128
    repeats: int = 5
    seed: int = 0
    batching: str = "ragged"

    def __post_init__(self) -> None:
        for name in ("prompts", "max_tokens", "repeats"):
            if getattr(self, name) < (2 if name == "max_tokens" else 1):
                raise UsageError(f"bench option {name}={getattr(self, name)} is too small to measure anything")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"bench option batches={self.batches} must name at least one positive batch size")
        if not self.memories or not set(self.memories) <= set(get_args(Memory)):
            raise UsageError(f"bench option memories={self.memories} must name some of {', '.join(get_args(Memory))}")
        for method in self.methods:
            registry.parse(method)
        parse_batching(self.batching)
        find_workloads(self.workloads)

    @property
    def contenders(self) -> tuple[str, ...]:
        """Methods with plain decoding in front, each once."""
        return tuple(dict.fromkeys((PLAIN, *self.methods)))


def split_methods(text: str) -> tuple[str, ...]:
    """Method strings out of a list separated by `;`, or by commas: there, `key=value` behind one belongs to the method before it."""
    methods: list[str] = []
    if ";" in text:
        return tuple(filter(None, (part.strip() for part in text.split(";"))))
    for piece in filter(None, (part.strip() for part in text.split(","))):
        if "=" in piece.partition(":")[0] and methods:
            methods[-1] += f",{piece}"
        else:
            methods.append(piece)
    return tuple(methods)


def standard_peers(model: str, draft: str | None) -> list[Peer]:
    """The engines we compare with: transformers greedy, with prompt lookup and with the draft model as assistant, and llama.cpp."""
    from paceline.bench.peers_llamacpp import LlamaCppPeer
    from paceline.bench.peers_transformers import TransformersPeer

    peers: list[Peer] = [TransformersPeer(), TransformersPeer("prompt-lookup")]
    if draft:
        peers.append(TransformersPeer("assistant", assistant=_folder(draft)))
    return [*peers, LlamaCppPeer()]


def run_bench(
    model: Any,
    settings: BenchSettings,
    *,
    draft: Any = None,
    dtype: str | None = None,
    device: str | None = None,
    peers: Sequence[Peer] = (),
    out: Path | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> Record:
    """Measure, cell by cell. All contenders of a cell (workload and batch size) are measured together.

    Args:
        model, draft, dtype, device: as for `paceline.load`; all methods share the weights.
        settings: what is measured.
        peers: other engines on the same checkpoint folder; they join greedy workloads at batch 1.
        out: file that the record is written to after every cell.
        resume: keep the cells that `out` already holds.
        on_progress: called with what is being measured, samples done and samples in all.

    Raises:
        UsageError: for options that do not fit together, or a file to resume from that was made with others.
    """
    target = load(model, PLAIN, dtype=dtype, device=device, kv_tokens=2, prefix_cache=False)
    helper = None if draft is None else load(draft, PLAIN, dtype=dtype, device=device, kv_tokens=2, prefix_cache=False)
    workloads = find_workloads(settings.workloads)
    joined = _load_peers(peers, model, target)
    described = _describe(settings, target, helper, [peer.name for peer in joined])
    rows: list[dict[str, Any]] = []
    record = Record(NAME, rows, described, {"seed": settings.seed}, describe_machine(str(target.runner.decoder.device)), notes=NOTES)
    path = None if out is None else record.default_path(out) if out.is_dir() else out
    if resume and path is not None:
        rows += _kept_rows(path, described)
    plan = [(workload, batch) for workload in workloads for batch in settings.batches if workload.samples == 1 or batch <= workload.samples]
    contenders = {(w.name, b): _names(settings, w, b, joined) for w, b in plan}
    total = sum(len(names) for names in contenders.values()) * (settings.repeats + 1)
    done = 0

    def step(label: str) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(label, done, total)

    for workload, batch in plan:
        names = contenders[workload.name, batch]
        present = {row["method"] for row in rows if row["workload"] == workload.name and row["batch"] == batch}
        if present >= set(names):
            for _ in range(len(names) * (settings.repeats + 1)):
                step(f"{workload.name}, batch {batch}: kept")
            continue
        cell = _cell(settings, workload, batch, target)
        engines: list[Contender] = [each for method in settings.contenders for each in _method(target, helper, method, cell, settings)]
        engines += [PeerContender(peer) for peer in joined if peer.name in names]
        rows[:] = [row for row in rows if (row["workload"], row["batch"]) != (workload.name, batch)]
        # Defaults bind this turn of the loop; mypy cannot infer such a lambda.
        where = f"{workload.name}, batch {batch}"
        rows += run_cell(cell, engines, lambda name, where=where: step(f"{where}: {name}"))  # type: ignore[misc]  # defaults of a lambda
        if path is not None:
            record.write(path)
    for peer in joined:
        peer.close()
    return record


def _cell(settings: BenchSettings, workload: Workload, batch: int, target: LLM) -> Cell:
    """Prompts of a workload, as many as fill whole batches, and as many others to warm memories up with."""
    count = -(-settings.prompts // batch) * batch if workload.samples == 1 else max(2, -(-settings.prompts // workload.samples))
    context = target.engine.context - settings.max_tokens - 1
    prompts = workload.prompts(2 * count, target.tokenizer, target.vocabulary, context, settings.seed)
    sampling = replace(workload.sampling, seed=settings.seed)
    return Cell(
        workload.name,
        prompts[:count],
        sampling,
        settings.max_tokens,
        batch,
        settings.repeats,
        samples=workload.samples,
        others=prompts[count:],
        coupled=workload.samples == 1,
    )


def _method(target: LLM, helper: LLM | None, method: str, cell: Cell, settings: BenchSettings) -> list[MethodContender]:
    """An engine around the shared weights, with memory for one batch: one contender for each state of what it remembers."""
    most = largest_draft([choice.config() for choice in registry.parse(method)])
    longest = max(map(len, [*cell.prompts, *cell.others]))
    llm = load(
        target,
        method,
        draft=helper,
        device=target.runner.decoder.device,
        coupled=cell.coupled,
        kv_tokens=cell.batch * (longest + cell.max_tokens + most + SPARE) * canvases(method),
        max_sequences=cell.batch,
        prefix_cache=False,
        batching="ragged" if method == PLAIN else settings.batching,
    )
    return [MethodContender(method, llm, state) for state in _states(settings, method)]


def _names(settings: BenchSettings, workload: Workload, batch: int, peers: Sequence[Peer]) -> list[str]:
    """Contenders of a cell."""
    named = [label(method, state) for method in settings.contenders for state in _states(settings, method)]
    return [*named, *(peer.name for peer in peers if batch == 1 and workload.sampling.greedy and workload.samples == 1)]


def _states(settings: BenchSettings, method: str) -> tuple[Memory, ...]:
    """What a method may remember when a round begins: nothing at all unless it, or a part of it, keeps text."""
    keeps = any(hasattr(choice.method.load(), "forget") for choice in registry.parse(method))
    return settings.memories if keeps else ("cold",)


def _load_peers(peers: Sequence[Peer], model: Any, target: LLM) -> list[Peer]:
    """The peers that can run here, loaded from the model's folder."""
    import torch

    if not peers:
        return []
    if not isinstance(model, (str, Path)):
        raise UsageError("peers read a checkpoint folder; give the model as a folder or a name, or leave the peers out")
    folder = _folder(model)
    dtype = str(target.runner.decoder.dtype).removeprefix("torch.")
    loaded = []
    for peer in peers:
        if peer.available() is None:
            peer.load(folder, dtype, torch.get_num_threads())
            loaded.append(peer)
    return loaded


def _folder(model: str | Path) -> Path:
    from paceline.models.hub import locate
    from paceline.zoo.registry import resolve

    return locate(resolve(str(model)) or model)


def _describe(settings: BenchSettings, target: LLM, helper: LLM | None, peers: Sequence[str]) -> dict[str, Any]:
    decoder = target.runner.decoder
    return {
        "model": public_name(target.name),
        "draft": None if helper is None else public_name(helper.name),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "device": str(decoder.device),
        "methods": list(settings.contenders),
        "workloads": [workload.name for workload in find_workloads(settings.workloads)],
        "batches": list(settings.batches),
        "memories": list(settings.memories),
        "batching": settings.batching,
        "prompts": settings.prompts,
        "max_tokens": settings.max_tokens,
        "repeats": settings.repeats,
        "peers": list(peers),
    }


def _kept_rows(out: Path, described: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an unfinished record.

    Raises:
        UsageError: if it was made with other settings; what may differ is which methods, workloads, batches and peers were asked for.
    """
    if not out.exists():
        return []
    record = read_record(out)
    settings = {"batching": "ragged"} | record["settings"]
    for name in ("model", "draft", "dtype", "device", "prompts", "max_tokens", "repeats", "batching"):
        if settings.get(name) != described[name]:
            was = settings.get(name)
            raise UsageError(f"{out} was measured with {name}={was!r}, not {described[name]!r}; use another file, or no --resume")
    rows: list[dict[str, Any]] = record["rows"]
    return rows

"""Batched speculation: ragged slots against dense caches that are realigned, grouped, rolled back or left with gaps.

    python benchmarks/batch_speculation.py --json benchmarks/results     # everything: about a quarter of an hour on two cores
    python benchmarks/batch_speculation.py --quick                       # two batch sizes, few tokens: a minute

`cost`: every strategy with the same draft model on the same prompts, of equal lengths, of mixed lengths sorted, and mixed at random.
Expected: `exspec` needs fewer target calls than `eqspec`, and `pool` (the same without grouping) tells how much of that is due to the pool
alone; the align share of `eqspec` grows with the batch; `rollback` copies nothing and needs the most calls; `ragged` aligns nothing.
All requests arrive at once; p50 and p99 are seconds until one has ended. A bound on waiting (`wait 4`) trades calls for the latter.
`c draft`, `c verify`, `c align`: seconds per target call in units of a call of plain batching; `model` is the speed-up they predict, tokens
per call over their sum. What the measured one lacks of it is scheduling and emission.
`bonus`: tokens per step with the target's own token behind a fully accepted draft and without, beside the law for the measured acceptance.
`faults`: exact and partial match of reference bugs with plain decoding, and of plain batching as control, in float32; and of what is right
in float64 too, where nothing may differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.audit.dense_faults import FAULTS
from paceline.bench.dense_costs import PARTS_OF_A_CALL, measured, modelled
from paceline.bench.match import match
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.bench.workloads import find_workloads
from paceline.core.errors import PacelineError
from paceline.core.rng import key
from paceline.engine.llm import LLM
from paceline.engine.load import load

PARTS = ("cost", "bonus", "faults")
LENGTHS = ("equal", "sorted", "random")
SHORTEST, LONGEST, WINDOW = 16, 192, 48
ARMS = {
    "plain": "ragged",
    "ragged": "ragged",
    "eqspec": "eqspec:batch={batch}",
    "exspec": "exspec:batch={batch},window={window}",
    "exspec, wait 4": "exspec:batch={batch},window={window},max_wait=4",
    "pool": "exspec:batch={batch},window={window},grouping=false",
    "rollback": "rollback:batch={batch}",
    "gap": "gap:batch={batch}",
}
Prompts = list[list[int]]


def percent(name: str) -> Column:
    """A share as a percentage."""
    return Column(name.replace("_", " ") + " %", lambda row: "" if row.get(name) is None else f"{100 * row[name]:.1f}")


COST_COLUMNS = [
    Column("lengths", "lengths", numeric=False),
    Column("batch", "batch"),
    Column("strategy", "strategy", numeric=False),
    *(Column(name.replace("_", " "), name) for name in ("tokens_per_second", "speedup", "calls", "ms_per_call", "tokens_per_step")),
    *(Column(name.replace("_", " "), name) for name in (*PARTS_OF_A_CALL, "model")),
    *(Column(f"{name} s", f"latency_{name}") for name in ("p50", "p99")),
    *(percent(name) for name in ("draft", "verify", "align", "group_rate", "padding", "exact", "partial")),
    Column("copied MB", lambda row: f"{row['copied_bytes'] / 1e6:.1f}"),
]
BONUS_COLUMNS = [Column(name.replace("_", " "), name) for name in ("length", "acceptance", "with_bonus", "without", "ratio", "expected")]
FAULT_COLUMNS = [
    Column("what is wrong", "fault", numeric=False),
    Column("batching", "batching", numeric=False),
    Column("type", "dtype", numeric=False),
    percent("exact"),
    percent("partial"),
]


def prompts_of(target: LLM, kind: str, count: int, max_tokens: int, seed: int) -> Prompts:
    """Ends of held-out files, cut to lengths of one distribution."""
    (workload,) = find_workloads(["completion"])
    texts = workload.prompts(count, target.tokenizer, target.vocabulary, target.engine.context - max_tokens - 1, seed)
    lengths = [SHORTEST + key(seed, index) % (LONGEST - SHORTEST + 1) for index in range(count)]
    if kind == "equal":
        lengths = [(SHORTEST + LONGEST) // 2] * count
    if kind == "sorted":
        lengths.sort()
    return [list(text[-length:]) for text, length in zip(texts, lengths, strict=True)]


def engine(target: LLM, draft: LLM, arm: str, batch: int, length: int, room: int) -> LLM:
    """An engine of one arm."""
    method = "none" if arm == "plain" else f"draft-model:length={length}"
    batching = ARMS[arm].format(batch=batch, window=max(WINDOW, 2 * batch))
    most = max(WINDOW, 2 * batch) if "exspec" in batching else batch
    return load(target, method, draft=draft, batching=batching, kv_tokens=room, max_sequences=most, prefix_cache=False)


def cost_rows(
    target: LLM, draft: LLM, batches: list[int], count: int, length: int, max_tokens: int, rounds: int, seed: int
) -> list[dict[str, Any]]:
    """All arms on all distributions. Arms take turns in every round; the speed-up is to plain batching at the same batch size."""
    rows = []
    for kind in LENGTHS:
        prompts = prompts_of(target, kind, count, max_tokens, seed)
        room = sum(map(len, prompts)) + count * (max_tokens + 64)
        alone = reference(target, prompts, max_tokens)
        for batch in batches:
            engines = {arm: engine(target, draft, arm, batch, length, room) for arm in ARMS}
            for llm in engines.values():
                llm.generate(prompts[:batch], max_tokens=4, ignore_eos=True)
            heard: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
            outputs: dict[str, list[list[int]]] = {}
            for _ in range(rounds):
                for arm, llm in engines.items():
                    found, outputs[arm] = measured(llm, prompts, max_tokens)
                    heard[arm].append(found)
            base = {name: _median([found[name] for found in heard["plain"]]) for name in (*PARTS_OF_A_CALL, "tokens_per_call")}
            for arm, found_rows in heard.items():
                row = {name: _median([found[name] for found in found_rows]) for name in found_rows[0]}
                pairs = zip(found_rows, heard["plain"], strict=True)
                row["speedup"] = median(mine["tokens_per_second"] / plain["tokens_per_second"] for mine, plain in pairs)
                row |= modelled(row, base)
                agreed = match(alone, outputs[arm])
                place = {"part": "cost", "lengths": kind, "batch": batch, "strategy": arm}
                rows.append({**place, **row, "exact": agreed.exact, "partial": agreed.partial})
    return rows


def _median(values: list[Any]) -> Any:
    return None if values[0] is None else median(values)


def reference(target: LLM, prompts: Prompts, max_tokens: int) -> list[list[int]]:
    """Plain decoding of every prompt by itself."""
    plain = load(target, "none", max_sequences=1, kv_tokens=max(map(len, prompts)) + max_tokens + 64, prefix_cache=False)
    return [plain.generate([prompt], max_tokens=max_tokens, ignore_eos=True)[0].token_ids for prompt in prompts]


def bonus_rows(target: LLM, draft: LLM, lengths: list[int], count: int, max_tokens: int, seed: int) -> list[dict[str, Any]]:
    """Tokens per step with and without the bonus; `expected` is their ratio if every drafted token were accepted with one probability."""
    prompts = prompts_of(target, "random", count, max_tokens, seed)
    room = sum(map(len, prompts)) + count * (max_tokens + 64)
    rows = []
    for length in lengths:
        found = {}
        for lost in ("false", "true"):
            batching = f"eqspec:batch=4,reference_bonus={lost}"
            llm = load(target, f"draft-model:length={length}", draft=draft, batching=batching, kv_tokens=room, prefix_cache=False)
            outputs = llm.generate(prompts, max_tokens=max_tokens, ignore_eos=True)
            found[lost] = sum(output.stats.output_tokens for output in outputs) / sum(output.stats.forwards for output in outputs)
            if lost == "false":
                offered = [sum(at) for at in zip(*(_padded(output.stats.offered_by_depth, length) for output in outputs), strict=True)]
                accepted = [sum(at) for at in zip(*(_padded(output.stats.accepted_by_depth, length) for output in outputs), strict=True)]
        rate = _rate(offered, accepted)
        expected = (1 - rate ** (length + 1)) / (1 - rate**length) if rate < 1 else (length + 1) / length
        ratio = found["false"] / found["true"]
        steps = {"with_bonus": found["false"], "without": found["true"], "ratio": ratio, "expected": expected}
        rows.append({"part": "bonus", "length": length, "acceptance": rate, **steps})
    return rows


def _padded(counts: tuple[int, ...], length: int) -> list[int]:
    return [*counts, *[0] * (length - len(counts))][:length]


def _rate(offered: list[int], accepted: list[int]) -> float:
    """Chance that a drafted token is accepted given that those before it were."""
    tried = [offered[0], *(min(o, a) for o, a in zip(offered[1:], accepted, strict=False))]
    return sum(accepted) / max(1, sum(tried))


def fault_rows(
    target: LLM, draft: LLM, batch: int, count: int, length: int, max_tokens: int, seed: int, broken: bool = True
) -> list[dict[str, Any]]:
    """Agreement of what is right with plain decoding, as control, and of deliberate bugs (if `broken`)."""
    prompts = prompts_of(target, "random", count, max_tokens, seed)
    room = sum(map(len, prompts)) + count * (max_tokens + 64)
    alone = reference(target, prompts, max_tokens)
    rows = []
    for arm in ARMS:
        llm = engine(target, draft, arm, batch, length, room)
        rows.append(_agreement(f"nothing ({arm})", ARMS[arm].partition(":")[0], llm, prompts, alone, max_tokens))
    for fault in FAULTS if broken else ():
        llm = engine(target, draft, fault.batching, batch, length, room)
        fault.build(llm, draft.runner.decoder)
        rows.append(_agreement(fault.name, fault.batching, llm, prompts, alone, max_tokens))
    return rows


def _agreement(fault: str, batching: str, llm: LLM, prompts: Prompts, alone: list[list[int]], max_tokens: int) -> dict[str, Any]:
    outputs = llm.generate(prompts, max_tokens=max_tokens, ignore_eos=True)
    found = match(alone, [output.token_ids for output in outputs])
    place = {"part": "faults", "fault": fault, "batching": batching, "dtype": _dtype(llm)}
    return {**place, "exact": found.exact, "partial": found.partial}


def _dtype(llm: LLM) -> str:
    return str(llm.runner.decoder.dtype).removeprefix("torch.")


def main(
    only: Annotated[str, typer.Option(help=f"parts, separated by commas: {', '.join(PARTS)}")] = ",".join(PARTS),
    model: Annotated[str, typer.Option(help="pocket model, checkpoint folder or Hub id")] = "pocket-code",
    draft: Annotated[str, typer.Option(help="draft model")] = "pocket-code-draft",
    dtype: Annotated[str | None, typer.Option(help="of weights and KV, but for the faults, which have types of their own")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="batch sizes (repeat for several); 1, 2, 4, 8 by default")] = None,
    length: Annotated[int, typer.Option(help="drafted tokens")] = 5,
    prompts: Annotated[int, typer.Option(help="per distribution")] = 48,
    max_tokens: Annotated[int, typer.Option(help="per prompt")] = 64,
    rounds: Annotated[int, typer.Option(help="timed rounds")] = 3,
    seed: Annotated[int, typer.Option(help="of prompt lengths")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="batch sizes 1 and 4, 8 prompts of 24 tokens, one round")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print tables, and write a record with --json."""
    console, parts = Console(width=220), only.split(",")
    batches = batch or ([1, 4] if quick else [1, 2, 4, 8])
    if quick:
        prompts, max_tokens, rounds = 8, 24, 1
    rows: list[dict[str, Any]] = []
    try:
        target, helper = (load(name, "none", dtype=dtype, kv_tokens=2, prefix_cache=False) for name in (model, draft))
        if "cost" in parts:
            rows += cost_rows(target, helper, batches, prompts, length, max_tokens, rounds, seed)
            console.print(render_table("cost of keeping rows in line", COST_COLUMNS, rows))
        if "bonus" in parts:
            found = bonus_rows(target, helper, [1, length], prompts, max_tokens, seed)
            console.print(render_table("what the bonus token is worth", BONUS_COLUMNS, found))
            rows += found
        if "faults" in parts:
            found = []
            for kind in ("float32", "float64"):
                pair = [load(name, "none", dtype=kind, kv_tokens=2, prefix_cache=False) for name in (model, draft)]
                found += fault_rows(pair[0], pair[1], max(batches), prompts, length, max_tokens, seed, broken=kind == "float32")
            console.print(render_table("agreement with plain decoding", FAULT_COLUMNS, found))
            rows += found
        if json is not None:
            settings: dict[str, Any] = {
                "model": public_name(model),
                "draft": public_name(draft),
                "dtype": _dtype(target),
                "batches": batches,
                "parts": parts,
            }
            settings |= {"length": length, "prompts": prompts, "max_tokens": max_tokens, "rounds": rounds, "window": WINDOW}
            record = Record("batch-speculation", rows, settings, {"seed": seed})
            console.print(f"wrote {replace(record, notes=NOTES).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


NOTES = (
    "calls counts target forwards, those that read prompts included; ms_per_call is their time with realignment.",
    "draft, verify and align are shares of their sum; speedup is to plain decoding over token slots at the same batch size.",
    "exact and partial are matches with plain decoding of each prompt alone; what plain batching misses is rounding of near-ties.",
    "c_draft, c_verify and c_align are seconds per target call in units of plain batching's; model is the speed-up they predict.",
    "Every request runs to its limit, end-of-text ignored, so that tokens per second count equally many tokens for every strategy.",
    "ragged and plain refill places as sequences finish; eqspec, rollback and gap run fixed batches; exspec and pool refill a window.",
)


if __name__ == "__main__":
    typer.run(main)

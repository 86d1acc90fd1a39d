"""What a round of batched speculation costs, by part, and the speed-up that the paper's cost model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from paceline.engine.costs import costs
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.scheduling.dense.pool import Batches, SequencePool

PARTS_OF_A_CALL = ("c_draft", "c_verify", "c_align")


def measured(llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int) -> tuple[dict[str, Any], list[list[int]]]:
    """One round of a warm engine, greedy and to the limit.

    Returns:
        (numbers, output ids in the order asked). Times in seconds, `ms_per_call` in milliseconds; shares and `padding` are of 1; parts of a
        call are seconds per target forward, those that read prompts included.
    """
    runner, before = llm.engine.runner, costs(llm.engine)
    calls, rows = runner.forwards, runner.rows
    padded, copied = (runner.padding, _copied(llm)) if isinstance(runner, DenseRunner) else (0, 0)
    start = perf_counter()
    outputs = llm.generate(prompts, max_tokens=max_tokens, ignore_eos=True)
    seconds = perf_counter() - start
    spent = costs(llm.engine) - before
    tokens, steps = sum(output.stats.output_tokens for output in outputs), sum(output.stats.forwards for output in outputs)
    ended = sorted(output.stats.times[-1] for output in outputs)
    found: dict[str, Any] = {
        "tokens_per_second": tokens / seconds,
        "calls": runner.forwards - calls,
        "ms_per_call": 1000 * (spent.verify + spent.align) / (runner.forwards - calls),
        "tokens_per_step": tokens / steps,
        "tokens_per_call": tokens / (runner.forwards - calls),
        **{part: getattr(spent, part.removeprefix("c_")) / (runner.forwards - calls) for part in PARTS_OF_A_CALL},
        **spent.shares(),
        "latency_p50": ended[len(ended) // 2],
        "latency_p99": ended[min(len(ended) - 1, len(ended) * 99 // 100)],
        "padding": (runner.padding - padded) / (runner.rows - rows) if isinstance(runner, DenseRunner) else 0.0,
        "copied_bytes": _copied(llm) - copied,
    }
    found["group_rate"] = _group_rate(llm)
    return found, [output.token_ids for output in outputs]


def _group_rate(llm: LLM) -> float | None:
    """Share of batches of equal length in this round, where a strategy looks for them."""
    scheduler = llm.engine.scheduler
    if not isinstance(scheduler, SequencePool) or not scheduler.options.grouping:
        return None
    rate = scheduler.batches.group_rate
    scheduler.batches = Batches()
    return rate


def _copied(llm: LLM) -> int:
    """Bytes moved to keep rows in line so far, in the caches of target and draft."""
    runners = (llm.engine.runner, getattr(llm.engine.drafter, "runner", None))
    return sum(runner.dense.traffic.copied for runner in runners if isinstance(runner, DenseRunner))


def modelled(row: Mapping[str, Any], plain: Mapping[str, float]) -> dict[str, float]:
    """The paper's cost model (sec. 3): what a call costs in units of a plain one, and the speed-up that follows.

    Args:
        row: seconds per target call by part, and `tokens_per_call`.
        plain: the same of plain batching of the same prompts at the same batch size.
    """
    unit = sum(plain[part] for part in PARTS_OF_A_CALL)
    parts = {part: row[part] / unit for part in PARTS_OF_A_CALL}
    return {**parts, "model": row["tokens_per_call"] / plain["tokens_per_call"] / sum(parts.values())}

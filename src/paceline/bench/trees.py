"""Dynamic against static trees on real models: tokens per target forward, draft forwards, and speed, at equal numbers of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from paceline.core.sampling import Sampling
from paceline.drafting.sequoia import Sequoia
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.output import Output
from paceline.planning.static_tree import spell

Prompts = Sequence[Sequence[int]]


def measure_acceptance(target: LLM, draft: LLM, prompts: Prompts, sampling: Sampling, max_tokens: int, by_depth: bool = False) -> str:
    """Acceptance by rank of a draft model's children, as the option `sequoia:acceptance=...` takes it.

    Args:
        prompts: not those the planned tree will be judged on.
        by_depth: a row per depth; otherwise one row for all.

    Raises:
        UsageError: if nothing was accepted.
    """
    llm = _engine(target, draft, "sequoia", prompts, max_tokens)
    scout = llm.engine.drafter
    assert isinstance(scout, Sequoia)
    for prompt in prompts:
        llm.generate([list(prompt)], sampling, max_tokens)
    return spell(scout.measured.rates(by_depth))


def tree_methods(nodes: int, acceptance: str, sampled: bool = False) -> tuple[str, ...]:
    """What is compared at this number of nodes.

    Args:
        acceptance: for the planned tree, from `measure_acceptance`.
        sampled: the target samples: independent draws (SpecInfer) join in. Else DySpec's two ways to pick children are told apart.
    """
    even = {4: "2x1", 8: "2x1x1x1", 16: "3x2x1", 32: "4x2x1x1", 64: "4x3x2x1"}
    widths = even[max(size for size in even if size <= max(nodes, 4))]
    tree = f"draft-model:length={widths.count('x') + 1},branching={widths}"
    return (
        "none",
        f"draft-model:length={min(nodes, 8)}",
        tree,
        *((f"{tree},replacement=true",) if sampled else ()),
        f"sequoia:nodes={nodes},acceptance={acceptance}",
        f"dyspec:budget={nodes}",
        f"dyspec:budget={nodes},mode=budget",
        f"dyspec:budget={nodes},value=calibrated",
        *(() if sampled else (f"dyspec:budget={nodes},draws=sampled",)),
        "dyspec:budget=auto",
        "dyspec:budget=auto,value=calibrated",
    )


def compare_trees(
    target: LLM, draft: LLM, methods: Sequence[str], prompts: Prompts, sampling: Sampling, max_tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """One row per method; methods take turns, prompt by prompt at batch 1, and speed is relative to the first method.

    Returns:
        Rows with `method`, `tokens_per_forward`, `draft_forwards` (per target forward), `nodes` (per target forward), `speedup` (median
        over rounds) and `acceptance_by_depth`.
    """
    engines = {method: _engine(target, draft, method, prompts, max_tokens) for method in methods}
    for llm in engines.values():
        llm.generate([list(prompts[0])], sampling, min(8, max_tokens))
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    outputs: dict[str, list[Output]] = {}
    calls: dict[str, int] = {}
    for _ in range(rounds):
        for method, llm in engines.items():
            before = _draft_forwards(llm)
            outputs[method] = [llm.generate([list(prompt)], sampling, max_tokens)[0] for prompt in prompts]
            calls[method] = _draft_forwards(llm) - before
            tokens = sum(output.stats.output_tokens - 1 for output in outputs[method])
            seconds[method].append(sum(output.stats.decode_seconds for output in outputs[method]) / max(1, tokens))
    return [_row(method, outputs[method], calls[method], seconds[methods[0]], seconds[method]) for method in methods]


def _engine(target: LLM, draft: LLM, method: str, prompts: Prompts, max_tokens: int) -> LLM:
    room = max(map(len, prompts)) + max_tokens + 256
    return load(target, method, draft=draft, kv_tokens=2 * room, max_sequences=1, device=target.runner.decoder.device)


def _draft_forwards(llm: LLM) -> int:
    return int(getattr(llm.engine.drafter, "forwards", 0))


def _row(method: str, outputs: Sequence[Output], calls: int, plain: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    forwards = sum(output.stats.forwards for output in outputs)
    deepest = max(len(output.stats.offered_by_depth) for output in outputs)
    sums = [
        [sum(counts[depth] for output in outputs if depth < len(counts := getattr(output.stats, field))) for depth in range(deepest)]
        for field in ("accepted_by_depth", "offered_by_depth")
    ]
    return {
        "method": method,
        "tokens_per_forward": sum(output.stats.output_tokens for output in outputs) / forwards,
        "draft_forwards": calls / forwards,
        "nodes": sum(output.stats.drafted for output in outputs) / forwards,
        "speedup": median(base / time for base, time in zip(plain, own, strict=True)),
        "acceptance_by_depth": [round(hit / seen, 4) for hit, seen in zip(*sums, strict=True) if seen],
    }

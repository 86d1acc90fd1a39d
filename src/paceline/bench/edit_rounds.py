"""Rounds of editing: contenders answer the same sources in turn, and what they took is compared with plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from paceline.engine.llm import LLM
from paceline.zoo.editor import greedy_edits
from paceline.zoo.pairs import Pair, padded

PLAIN = "none"
MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Answers:
    """One round of one contender over all sources of a cell.

    Attributes:
        ids: outputs, end-of-text left out.
        seconds: wall time of all of them together.
        forwards, drafted, accepted: target forwards, tokens they judged, and those of them that stayed; 0 for peers.
        draft_seconds: time spent drafting.
    """

    ids: list[list[int]]
    seconds: float
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0


def answer(llm: LLM, pairs: Sequence[Pair], max_tokens: int = MAX_TOKENS) -> Answers:
    """Greedy outputs one by one."""
    drafting, start = llm.engine.phases.seconds["draft"], perf_counter()
    outputs = [llm.generate([pair.source], max_tokens=max_tokens)[0] for pair in pairs]
    seconds = perf_counter() - start
    forwards, drafted, accepted = (sum(getattr(output.stats, name) for output in outputs) for name in ("forwards", "drafted", "accepted"))
    ids = [[token for token in output.token_ids if token not in llm.engine.eos] for output in outputs]
    return Answers(ids, seconds, forwards, drafted, accepted, llm.engine.phases.seconds["draft"] - drafting)


def answer_by_transformers(network: torch.nn.Module, pairs: Sequence[Pair]) -> Answers:
    """Greedy outputs (beam width 1) of the same weights from `transformers.generate`, one by one."""
    start = perf_counter()
    ids = [greedy_edits(network, padded([pair]).source, MAX_TOKENS)[0] for pair in pairs]
    return Answers(ids, perf_counter() - start)


def rounds(contenders: Mapping[str, Callable[[Sequence[Pair]], Answers]], pairs: Sequence[Pair], repeats: int) -> dict[str, list[Answers]]:
    """Every contender once untimed, then `repeats` rounds in which they take turns."""
    for contender in contenders.values():
        contender(pairs[:2])
    found: dict[str, list[Answers]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            found[name].append(contender(pairs))
    return found


def cell(found: Mapping[str, list[Answers]], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """One row per contender; ratios are taken within a round. `wasted` is the share of drafted tokens that did not stay."""
    plain = found[PLAIN]
    rows = []
    for name, answers in found.items():
        first = answers[0]
        tokens = sum(len(ids) + 1 for ids in first.ids)
        row: dict[str, Any] = {
            "method": name,
            "sources": len(pairs),
            "tokens": tokens,
            "milliseconds": 1000 * median(one.seconds for one in answers) / len(pairs),
            "speedup": median(base.seconds / one.seconds for base, one in zip(plain, answers, strict=True)),
            "identical": sum(mine == theirs for mine, theirs in zip(first.ids, plain[0].ids, strict=True)),
        }
        if first.forwards:
            row |= {
                "forwards": first.forwards,
                "tokens_per_forward": tokens / first.forwards,
                "rows_per_forward": 1 + first.drafted / first.forwards,
                "wasted": 1 - first.accepted / first.drafted if first.drafted else None,
            }
            row["draft_share"] = median(one.draft_seconds / one.seconds for one in answers)
        rows.append(row)
    return rows

"""The same weights and memory, decoded plainly: what an accelerated model is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.drafting.none import NoDraft
from paceline.engine.llm import LLM
from paceline.engine.loop import Engine


def plain_twin(llm: LLM) -> LLM:
    """A second facade over the runner of `llm` whose drafts are all empty.

    Weights, memory and prefix cache are shared, so that a comparison needs no second copy. Use one of the two at a time.
    """
    engine = Engine(llm.runner, NoDraft(), llm.tokenizer, llm.engine.config)
    return LLM(engine, llm.tokenizer, llm.ledger, llm.name, "none")


def first_difference(mine: Sequence[int], other: Sequence[int]) -> int | None:
    """First index at which two outputs differ (the end of the shorter one, if it is a prefix); `None` if they are equal."""
    for at, (left, right) in enumerate(zip(mine, other, strict=False)):
        if left != right:
            return at
    return None if len(mine) == len(other) else min(len(mine), len(other))

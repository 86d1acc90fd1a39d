"""The same weights, decoded plainly: what an accelerated model is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.engine.llm import LLM


def plain_twin(llm: LLM, sequences: int = 1) -> LLM:
    """A model that shares the weights of `llm`, has a memory of its own, and never drafts.

    Args:
        llm: whose weights.
        sequences: most sequences decoded at once.
    """
    from paceline.engine.load import load

    runner = llm.runner
    method, diffusion = "none", runner.decoder.config.diffusion
    if diffusion is not None and diffusion.block is None:  # one position per step, in blocks of the same size
        method = f"static:block={llm.engine.denoiser.block or 'whole'}"
    return load(llm, method, device=runner.decoder.device, exact=runner.exact is not None, max_sequences=sequences, prefix_cache=False)


def first_difference(mine: Sequence[int], other: Sequence[int]) -> int | None:
    """First index at which two outputs differ (the end of the shorter one, if it is a prefix); `None` if they are equal."""
    for at, (left, right) in enumerate(zip(mine, other, strict=False)):
        if left != right:
            return at
    return None if len(mine) == len(other) else min(len(mine), len(other))

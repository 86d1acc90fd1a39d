"""How far outputs agree with reference outputs: the share that is equal, and how much of each is right before the first difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """Agreement of many outputs.

    Args:
        exact: share of outputs equal to their reference.
        partial: mean over outputs of the tokens before the first difference, as a share of the reference; 1 where equal.
    """

    exact: float
    partial: float


def match(references: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Match:
    """Compare outputs with references one by one (arXiv 2510.22876, sec. 5).

    Raises:
        ValueError: if there are none, or not equally many.
    """
    if not references or len(references) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs for {len(references)} references; one of each is needed at least")
    shares = [_common(reference, output) for reference, output in zip(references, outputs, strict=True)]
    equal = [list(reference) == list(output) for reference, output in zip(references, outputs, strict=True)]
    return Match(sum(equal) / len(equal), sum(shares) / len(shares))


def _common(reference: Sequence[int], output: Sequence[int]) -> float:
    if list(reference) == list(output):
        return 1.0
    pairs = zip(reference, output, strict=False)
    first = next((at for at, (wanted, found) in enumerate(pairs) if wanted != found), min(len(reference), len(output)))
    return first / max(1, len(reference))

"""Sampling sequences judged by a kernel, on a CPU: the rules of `walk` and `rejection` without an operator to call.

What the kernel does not cover (penalties, bans, other types and devices) or finds wrong is left to these two, which say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import accumulate

from jaxtyping import Float
from torch import Tensor

from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import law_of
from paceline.core.tree import TokenTree
from paceline.kernels.judging import READABLE, Walked, judge
from paceline.verification.walk import Path


def walked(
    sequences: Many[Sequence],
    trees: Many[TokenTree],
    logits: Float[Tensor, "nodes vocabulary"],
    rejects: Callable[[Sampling, TokenTree], bool],
) -> dict[int, Walked]:
    """What the kernel says, by place in the batch; sequences that it has nothing to say about are left out.

    Args:
        sequences, trees, logits: as for `Verifier.judge`.
        rejects: whether a sequence is judged by recursive rejection.
    """
    kernel = judge()
    if kernel is None or logits.device.type != "cpu" or logits.dtype not in READABLE or not logits.is_contiguous():
        return {}
    found: dict[int, Walked] = {}
    starts = accumulate(map(len, trees), initial=0)
    for place, (start, sequence, tree) in enumerate(zip(starts, sequences, trees, strict=False)):
        sampling = sequence.request.sampling
        if sampling.greedy or not sampling.plain_logits:
            continue
        rows = logits[start : start + len(tree)]
        answer = kernel(tree, rows, law_of(sampling), sequence.seed, len(sequence.tokens), rejects(sampling, tree))
        if answer is not None:
            found[place] = answer
    return found


def path(tree: TokenTree, answer: Walked) -> Path:
    """The walk as the rules in Python give it."""
    return answer.accepted, (*(tree.token[node] for node in answer.accepted), answer.token)

"""Sequences judged by a kernel, on a CPU: the rules of `walk` and `rejection` without an operator to call.

What the kernel does not cover (penalties, bans, tolerances, other types and devices) or finds wrong is left to these two, which say what is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import law_of
from paceline.core.tree import TokenTree
from paceline.kernels.judging import READABLE, Rule, Walked, judge
from paceline.verification.walk import Path


def walked(
    sequences: Many[Sequence],
    trees: Many[TokenTree],
    logits: Float[Tensor, "nodes vocabulary"],
    rejects: Callable[[Sampling, TokenTree], bool],
    keeps: int = 0,
) -> dict[int, Walked]:
    """What the kernel says, by place in the batch; sequences that it has nothing to say about are left out.

    Args:
        sequences, trees, logits: as for `Verifier.judge`.
        rejects: whether a sequence is judged by recursive rejection.
        keeps: how many likeliest tokens of each law are wanted.
    """
    kernel = judge()
    if kernel is None or logits.device.type != "cpu" or logits.dtype not in READABLE or not logits.is_contiguous():
        return {}
    found: dict[int, Walked] = {}
    address, half, width = logits.data_ptr(), logits.dtype is torch.bfloat16, logits.shape[-1]
    row_bytes = width * logits.element_size()
    for place, (sequence, tree) in enumerate(zip(sequences, trees, strict=True)):
        sampling = sequence.request.sampling
        if sampling.plain_logits and (tree.tolerance is None or not sampling.greedy):
            rule = Rule.GREEDY if sampling.greedy else Rule.REJECT if rejects(sampling, tree) else Rule.MATCH
            wanted = 0 if sampling.greedy else keeps
            answer = kernel(tree, address, half, width, law_of(sampling), sequence.seed, len(sequence.tokens), rule, wanted)
            if answer is not None:
                found[place] = answer
        address += row_bytes * len(tree)
    return found


def path(tree: TokenTree, answer: Walked) -> Path:
    """The walk as the rules in Python give it."""
    return answer.accepted, (*(tree.token[node] for node in answer.accepted), answer.token)

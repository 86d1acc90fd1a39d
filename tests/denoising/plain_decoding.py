"""Decoding of masked diffusion models written down once more, as plainly as possible: the whole canvas, one answer, no engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusion_models import BLOCK, MASK, Reference
from torch import Tensor

Choose = Callable[[Tensor, list[int]], list[int]]  # probabilities of the guessed tokens, open positions -> those to commit


def best(count: int) -> Choose:
    """The `count` most probable, lowest position first among equals."""
    return lambda chance, where: sorted(where, key=lambda at: (-chance[at].item(), at))[:count]


def above(threshold: float) -> Choose:
    """All at least as probable as a threshold, and the most probable."""
    return lambda chance, where: sorted({*best(1)(chance, where), *(at for at in where if chance[at] >= threshold)})


def decode(reference: Reference, prompt: list[int], length: int, block: int, choose: Choose, cache: str = "none") -> tuple[list[int], int]:
    """Output of a bidirectional model, and the number of forwards."""
    ids = [*prompt, *[MASK] * length]
    forwards, store = 0, None
    shift = int(reference.layout == "dream")
    for low in range(len(prompt), len(ids), block):
        high, first = min(low + block, len(ids)), True
        while any(ids[at] == MASK for at in range(low, high)):
            fed = list(range(len(ids)))
            if not first and cache != "none":
                fed = list(range(low, high if cache == "dual" else len(ids)))
            rows, store = reference.partial(ids, fed, store)
            logits = torch.full((len(ids), rows.shape[1]), torch.nan, dtype=rows.dtype)
            logits[torch.tensor(fed)] = rows
            if shift:
                logits = torch.cat([logits[:1], logits[:-1]])
            logits[:, MASK] = -torch.inf
            forwards += 1
            chance, token = logits.softmax(-1).max(-1)
            where = [at for at in range(low, high) if ids[at] == MASK]
            if shift and cache != "none" and first:  # its predictor is not fed later
                chance[low] = 2.0
            for at in choose(chance, where):
                ids[at] = int(token[at])
            first = False
    return ids[len(prompt) :], forwards


def decode_blocks(reference: Reference, prompt: list[int], length: int, choose: Choose) -> list[int]:
    """Output of a block-causal model, everything computed anew in every step."""
    total = -(-(len(prompt) + length) // BLOCK) * BLOCK
    ids = [*prompt, *[MASK] * (total - len(prompt))]
    for low in range(len(prompt) // BLOCK * BLOCK, total, BLOCK):
        while MASK in ids[low : low + BLOCK]:
            logits = reference(ids)
            logits[:, MASK] = -torch.inf
            chance, token = logits.softmax(-1).max(-1)
            where = [at for at in range(low, low + BLOCK) if ids[at] == MASK]
            for at in choose(chance, where):
                ids[at] = int(token[at])
    return ids[len(prompt) : len(prompt) + length]

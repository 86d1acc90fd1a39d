"""Logits of whole canvases, aligned with the positions they predict: what likelihoods and reference comparisons are made of."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.batch import ForwardBatch, Segment
from paceline.core.errors import UsageError
from paceline.engine.runner import Runner
from paceline.memory.slots import SlotMemory


def canvas_logits(runner: Runner, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens vocabulary"]:
    """Logits of a masked diffusion model for every position of every row; row i predicts position i, in Dream's layout too.

    Nothing stays in memory.

    Args:
        runner: weights; a memory of its own is made for the forward.
        ids: canvases of equal length.

    Raises:
        UsageError: if the model is autoregressive.
    """
    spec = runner.decoder.config.diffusion
    if spec is None:
        raise UsageError(f"{runner.decoder.config.family} is autoregressive; canvases are for masked diffusion models")
    rows, tokens = ids.shape
    memory = SlotMemory(runner.memory.layout, rows * tokens, prefix_cache=False)
    segments = []
    visible = None
    if spec.block is not None:
        number = torch.arange(tokens) // spec.block
        visible = number[:, None] >= number[None, :]
    for _ in range(rows):
        view = memory.admit([0])
        view.truncate(0)
        view.reserve(tokens)
        segments.append(Segment(view, tokens, mask=visible, canvas=tokens if visible is None else None))
    batch = ForwardBatch(ids.flatten().tolist(), list(range(tokens)) * rows, segments)
    logits = Runner(runner.decoder, memory).forward(batch).logits.view(rows, tokens, -1)
    return torch.cat([logits[:, :1], logits[:, :-1]], 1) if spec.shifted else logits

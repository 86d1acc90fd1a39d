"""How good a drafter is: which of its slots the verifier would accept, and how many tokens that makes per verifier call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paceline.models.nat import NatDrafter
from paceline.zoo.network import END_OF_TEXT_ID


@dataclass(frozen=True, slots=True)
class DraftQuality:
    """Figures over the verifier's own outputs.

    Attributes:
        tokens_per_call: output tokens, end-of-text included, per verifier forward at beta = 1.
        accepted_by_slot: how often slot j and all before it were right, j = 0, 1, ...; over all blocks that reach so far.
        calls: verifier forwards behind the figures.
    """

    tokens_per_call: float
    accepted_by_slot: list[float]
    calls: int


@torch.inference_mode()
def draft_quality(
    network: NatDrafter, sources: Sequence[Sequence[int]], outputs: Sequence[Sequence[int] | None], block: int
) -> DraftQuality:
    """Draft along known greedy outputs; the verifier itself need not run, since at beta = 1 it accepts exactly what equals its output.

    Args:
        sources: token ids.
        outputs: the verifier's greedy outputs, without end-of-text; `None` (it did not end) is left out.
        block: slots per draft.
    """
    network.eval()
    hits, offered = [0] * block, [0] * block
    calls = emitted = 0
    for ids, output in zip(sources, outputs, strict=True):
        if output is None:
            continue
        wanted = [*output, END_OF_TEXT_ID]
        source, done = network.encode(torch.tensor([ids])), 0
        while done < len(wanted):
            room = min(block, len(wanted) - done)
            draft = network.fill(source, torch.tensor(wanted[:done], dtype=torch.long), block).argmax(-1).tolist()
            right = next((slot for slot in range(room) if draft[slot] != wanted[done + slot]), room)
            for slot in range(room):
                offered[slot] += 1
                hits[slot] += slot < right
            done += min(right + 1, len(wanted) - done)
            calls += 1
        emitted += len(wanted)
    return DraftQuality(emitted / calls if calls else 1.0, [hit / max(1, total) for hit, total in zip(hits, offered, strict=True)], calls)

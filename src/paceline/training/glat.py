"""Learning to fill blocks: block-mask noise, glancing, and the loss of the slots that stay hidden.

Recipe of generalised aggressive decoding (Ge et al. 2022, arXiv 2205.10350, sec. 3.2), with the glancing of Qian et al. 2021 (GLAT, arXiv
2008.07905): the more slots the drafter gets wrong, the more gold tokens it is shown before it is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paceline.models.nat import NatDrafter, Source


@dataclass(frozen=True, slots=True)
class Block:
    """Decoder inputs with a block of slots each, and what belongs into the slots.

    Attributes:
        ids: gold tokens at known places, the mask id at slots, padding behind.
        slots: true where a token is to be predicted.
        labels: gold tokens everywhere; only those at `labelled` count.
        labelled: slots that have a gold token; those past the target's end have none.
        known: false at padding behind the block.
    """

    ids: Int[Tensor, "rows n"]
    slots: Bool[Tensor, "rows n"]
    labels: Int[Tensor, "rows n"]
    labelled: Bool[Tensor, "rows n"]
    known: Bool[Tensor, "rows n"]

    def reveal(self, shown: Bool[Tensor, "rows n"]) -> Block:
        """The same with some labelled slots turned into known gold tokens, which leave the loss."""
        seen = shown & self.labelled
        return replace(self, ids=torch.where(seen, self.labels, self.ids), slots=self.slots & ~seen, labelled=self.labelled & ~seen)


def block_noise(target: Int[Tensor, "rows tokens"], lengths: Int[Tensor, " rows"], block: int, mask: int, random: torch.Generator) -> Block:
    """Cut every target at a random place and put a block of slots behind the cut.

    Of a target of length L the first r = L - floor(L u) - 1 tokens stay, u uniform in [0, 1); then come exactly `block` slots, which stand
    for tokens r to r + block - 1. There is always at least one token to predict.

    Args:
        target: ids, end-of-text included, padded on the right.
        lengths: of the targets, end-of-text included; at least 1.
        random: on the CPU.
    """
    draws = torch.rand(len(lengths), generator=random, dtype=torch.float64).to(lengths.device)
    kept = lengths - (lengths * draws).long() - 1
    width = int(kept.max()) + block
    places = torch.arange(width, device=target.device)[None]
    slots = (places >= kept[:, None]) & (places < kept[:, None] + block)
    labels = F.pad(target, (0, max(0, width - target.shape[1])), value=mask)[:, :width]
    labelled = slots & (places < lengths[:, None])
    return Block(torch.where(slots, mask, labels), slots, labels, labelled, places < kept[:, None] + block)


def glance(right: Bool[Tensor, "rows n"], block: Block, ratio: float, random: torch.Generator) -> Bool[Tensor, "rows n"]:
    """Which labelled slots to reveal: per row floor(wrong * ratio) of them, drawn from all labelled ones with equal chance.

    Args:
        right: where the first pass predicted the label.
        ratio: 0 (reveal nothing) to 1.
        random: on the CPU.
    """
    wrong = (block.labelled & ~right).sum(-1)
    count = (wrong * ratio).long()
    order = torch.rand(block.labelled.shape, generator=random).to(right.device).masked_fill(~block.labelled, 2.0)
    rank = order.argsort(-1).argsort(-1)
    return block.labelled & (rank < count[:, None])


def glancing_loss(
    network: NatDrafter, source: Source, block: Block, ratio: float, smoothing: float, random: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Two passes with the same dropout: one to see what the drafter knows, one to learn from what it is still not shown.

    Args:
        source: encoded with gradient; both passes share it.
        ratio: share of the wrong slots' number that is revealed.
        smoothing: label smoothing.

    Returns:
        (loss, cross-entropy), in nats per slot; the second is detached and not smoothed.
    """
    noise = _noise_state(block.ids.device)
    with torch.no_grad():
        states = network(source, block.ids, block.slots, block.known)
        right = torch.zeros_like(block.labelled)
        right[block.labelled] = network.logits(states[block.labelled]).argmax(-1) == block.labels[block.labelled]
    hidden = block.reveal(glance(right, block, ratio, random))
    _set_noise_state(block.ids.device, noise)
    states = network(source, hidden.ids, hidden.slots, hidden.known)
    logits, labels = network.logits(states[hidden.labelled]).float(), hidden.labels[hidden.labelled]
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss, F.cross_entropy(logits.detach(), labels)


def glance_ratio(share: float, bounds: tuple[float, float]) -> float:
    """The ratio at a share (0 to 1) of the schedule: linear between the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _noise_state(device: torch.device) -> Tensor:
    """State of the generator that dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_noise_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)

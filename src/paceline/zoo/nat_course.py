"""The drafter's course: fill blocks of the verifier's own outputs, with glancing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paceline.models.nat import NatConfig, align, new_nat
from paceline.models.nat_files import inherit_encoder
from paceline.training.glat import block_noise, glance_ratio, glancing_loss
from paceline.zoo.courses import Lesson, Place, precision
from paceline.zoo.network import PAD_ID
from paceline.zoo.pairs import Pair, padded

if TYPE_CHECKING:
    from paceline.zoo.recipes import NatRecipe

POOL = 16  # batches that are sorted by length together


@dataclass(slots=True)
class NatCourse:
    """Glancing loss on random blocks.

    Args:
        recipe: shape, rows, glancing.
        pairs: damaged sources with the tokens to predict.
        device: where the batches go.
        verifier: whose encoder the drafter's starts from.
    """

    recipe: NatRecipe
    pairs: Sequence[Pair]
    device: torch.device
    verifier: nn.Module
    _cached: tuple[tuple[int, int], list[list[int]]] = field(default=((-1, -1), []), init=False)

    def network(self) -> nn.Module:
        """A drafter whose encoder is the verifier's."""
        network = new_nat(NatConfig(**self.recipe.shape), self.recipe.seed)  # type: ignore[arg-type]
        inherit_encoder(network, self.verifier.state_dict())
        align(network)  # again: the source positions are new
        return network.train()

    def signature(self) -> list[Any]:
        """Number of pairs and of their tokens."""
        return [len(self.pairs), sum(len(pair.source) + len(pair.target) for pair in self.pairs)]

    def lesson(self, network: nn.Module, place: Place) -> Lesson:
        """Every pair once per epoch, each time with another block."""
        chosen = padded([self.pairs[index] for index in self._members(place.step, place.context)]).to(self.device)
        random = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + place.step)
        config: NatConfig = network.config  # type: ignore[assignment]
        lengths = (chosen.target != PAD_ID).sum(-1)
        block = block_noise(chosen.target, lengths, config.block, config.mask, random)
        ratio = glance_ratio(place.share, self.recipe.glances)
        with precision(self.device):
            source = network.encode(chosen.source)  # type: ignore[operator]
            loss, entropy = glancing_loss(network, source, block, ratio, self.recipe.smoothing, random)  # type: ignore[arg-type]
        return Lesson(loss, entropy, int(block.known.sum()))

    def _members(self, step: int, context: int) -> list[int]:
        """Indices of the pairs of a step: those whose target fits, shuffled per epoch, neighbours in length together."""
        fitting = [index for index, pair in enumerate(self.pairs) if len(pair.target) < context] or list(range(len(self.pairs)))
        rows = max(1, 2 * self.recipe.tokens_per_step // context)
        batches = -(-len(fitting) // rows)
        epoch, at = divmod(step, batches)
        if self._cached[0] != (epoch, context):
            random = Random(f"{self.recipe.seed}:{epoch}")
            random.shuffle(fitting)
            made: list[list[int]] = []
            for start in range(0, len(fitting), POOL * rows):
                pool = sorted(fitting[start : start + POOL * rows], key=lambda index: len(self.pairs[index].target))
                made.extend(pool[first : first + rows] for first in range(0, len(pool), rows))
            random.shuffle(made)
            self._cached = ((epoch, context), made)
        return self._cached[1][at]

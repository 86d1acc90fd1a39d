"""The editing course: predict the original from a damaged span, teacher-forced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from paceline.zoo.courses import Lesson, Place, precision
from paceline.zoo.editor import editor_hidden, editor_logits, new_editor, shifted
from paceline.zoo.network import PAD_ID

if TYPE_CHECKING:
    from paceline.zoo.pairs import PairBatch
    from paceline.zoo.recipes import EditRecipe


class PairStream(Protocol):
    """Where batches come from, such as `EditPairs`."""

    seed: int

    @property
    def lines(self) -> int:
        """Size of what pairs are made from."""

    def batch(self, step: int, rows: int, longest: int) -> PairBatch:
        """The batch of a step, whose targets have at most `longest` tokens, end-of-text included."""


@dataclass(slots=True)
class EditCourse:
    """Cross-entropy of original tokens given the damaged source.

    Args:
        recipe: shape and rows.
        data: where pairs come from.
        device: where the batches go.
        like: a model of the same vocabulary to start the embedding from, if any.
    """

    recipe: EditRecipe
    data: PairStream
    device: torch.device
    like: nn.Module | None = None

    def network(self) -> nn.Module:
        """A BART-shaped network."""
        return new_editor(self.recipe.shape, self.recipe.seed, self.like)

    def signature(self) -> list[Any]:
        """Size and order of the corpus."""
        return [self.data.lines, self.data.seed]

    def lesson(self, network: nn.Module, place: Place) -> Lesson:
        """Pairs that follow from the step; twice the rows that fit at full length, since most spans are shorter."""
        rows = max(1, 2 * self.recipe.tokens_per_step // place.context)
        batch = self.data.batch(place.step, rows, place.context).to(self.device)
        known = batch.target != PAD_ID
        with precision(self.device):
            hidden = editor_hidden(network, batch.source, shifted(batch.target))
            logits = editor_logits(network, hidden[known])  # the output projection is a third of the work: not for padding
        loss = F.cross_entropy(logits.float(), batch.target[known])
        return Lesson(loss, loss.detach(), batch.tokens)

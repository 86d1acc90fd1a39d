"""The denoising course: fill masked positions of code, and of the answers to generated tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from paceline.denoising.objective import counted_masks, pretraining_length, weighted_loss
from paceline.zoo.corpus import Split
from paceline.zoo.courses import Lesson, Place, precision
from paceline.zoo.denoiser import Denoising, masked_logits, new_denoiser
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID
from paceline.zoo.packing import PackedDocuments
from paceline.zoo.tasks import problems
from paceline.zoo.tokenizer import MASK, SPECIALS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from paceline.zoo.recipes import DenoiseRecipe

MASK_ID = SPECIALS.index(MASK)
MEAN_TASK_ROW = 80  # tokens; a step of tasks has as many rows as fit at this length
SHORT_TAIL = 24  # end-of-text ids behind the longest answer of a batch, at most
WIDTHS = 16  # rows of tasks are a multiple of this long: every other shape would cost kernels of its own
LONG_SHARE = 0.25  # of the batches have longer tails, up to the context: canvases are often far longer than answers


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch.

    Attributes:
        ids: clean.
        answers: positions that may be masked: all of a packed row, what follows the prompt of the others.
    """

    ids: Int[Tensor, "rows tokens"]
    answers: Bool[Tensor, "rows tokens"]


@dataclass(slots=True)
class DenoiseCourse:
    """The masked loss of LLaDA, or SDAR's over a noisy and a clean copy, with a fixed number of masks per row.

    Code rows come from the packed corpus; a share of them begins with a prompt that is never masked, since that is how the model will be
    asked. Task rows are problems with their answers, the answer followed by end-of-text ids that belong to it; no two steps draw the same.

    Args:
        recipe: shape, rows and shares.
        data: packed training documents.
        tokenizer: of the tasks.
        device: where the batches go.
        start: network to take weights over from, if any.
    """

    recipe: DenoiseRecipe
    data: PackedDocuments
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    start: nn.Module | None = None

    def network(self) -> nn.Module:
        """Of the recipe's layout."""
        return new_denoiser(kind_for(self.recipe), shape_of(self.recipe), self.recipe.seed, self.start)

    def signature(self) -> list[Any]:
        """Size and order of the corpus."""
        return [self.data.tokens, self.data.seed]

    def lesson(self, network: nn.Module, place: Place) -> Lesson:
        """Rows and masks that follow from the step."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + place.step)
        tasks = float(torch.rand(1, generator=generator)) < self.recipe.task_share
        rows = self.task_rows(place, generator) if tasks else self.code_rows(place, generator)
        hidden, rate = counted_masks(rows.answers, generator)
        ids, masked, kind = rows.ids.to(self.device), hidden.to(self.device), kind_for(self.recipe)
        with precision(self.device):
            logits = masked_logits(network, kind, ids, masked)
        each = F.cross_entropy(logits.float(), ids[masked], reduction="none")
        loss = weighted_loss(each, masked, rate.to(self.device), rows.answers.to(self.device), pooled=kind.layout == "sdar")
        return Lesson(loss, each.detach().mean(), rows.ids.numel())

    def code_rows(self, place: Place, generator: torch.Generator) -> Rows:
        """Windows of the corpus, some of them with a prompt."""
        context = pretraining_length(place.context, generator)
        count = max(1, self.recipe.tokens_per_step // place.context)
        ids = self.data.batch(place.tokens, count, place.context)[:, :context]
        prompted = torch.rand(count, generator=generator) < self.recipe.prompted
        cut = torch.where(prompted, (torch.rand(count, generator=generator) * context).long(), 0)
        return Rows(ids, torch.arange(context) >= cut[:, None])

    def task_rows(self, place: Place, generator: torch.Generator) -> Rows:
        """Problems with their answers, filled up with end-of-text ids to a common length."""
        random = Random(int(torch.randint(1 << 30, (1,), generator=generator)))
        most = max(SHORT_TAIL, place.context - MEAN_TASK_ROW) if random.random() < LONG_SHARE else SHORT_TAIL
        tail = random.randint(1, most)
        count = max(1, self.recipe.tokens_per_step // (MEAN_TASK_ROW + max(0, tail - SHORT_TAIL)))
        drawn = list(problems(count, Split.TRAIN, seed=place.step))
        texts = [[problem.prompt for problem in drawn], [problem.answer for problem in drawn]]
        prompts, answers = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in texts)
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        width = -(-(longest + tail) // WIDTHS) * WIDTHS
        ids = torch.full((len(drawn), width), END_OF_TEXT_ID)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        return Rows(ids, torch.arange(width) >= torch.tensor([len(prompt) for prompt in prompts])[:, None])


def kind_for(recipe: DenoiseRecipe) -> Denoising:
    """What makes the recipe's network a diffusion model."""
    return Denoising(recipe.layout, MASK_ID, recipe.block)


def shape_of(recipe: DenoiseRecipe) -> Mapping[str, Any]:
    """Its shape with the ids of the shared tokenizer."""
    return {**recipe.shape, "bos_token_id": None, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": PAD_ID}

"""Recipes of the pocket models, as data: a new pocket model is a new row here.

Learning rates are for Muon with the update scaled to AdamW's size (Moonlight, arXiv 2502.16982, sec. 2.2), so both optimizers
share one order of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paceline.core.errors import UsageError
from paceline.zoo.tokenizer import VOCABULARY


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start` (share of the schedule, 0 to 1) on, rows have `context` tokens."""

    start: float
    context: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a pocket model besides the corpus.

    Attributes:
        shape: keyword arguments of `transformers.LlamaConfig`.
        tokens: token budget; the learning rate reaches zero there (or at the time limit, whichever comes first).
        time_share: the part of a build's time limit that this recipe may use, relative to the other recipes of the build.
        teacher: name of the recipe whose model this one is distilled from, if any.
        distil_from: share of the schedule at which the teacher's distribution joins the loss; before it the loss is plain
            cross-entropy, which is far cheaper because the teacher need not run.
        distil_weight: weight of the KL divergence from the teacher; cross-entropy has the rest.
    """

    name: str
    description: str
    shape: Mapping[str, int | float | bool]
    tokens: int
    time_share: float
    phases: tuple[Phase, ...]
    tokens_per_step: int = 4096
    warmup_tokens: int = 250_000
    muon_lr: float = 4e-3
    adamw_lr: float = 4e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 20
    teacher: str | None = None
    distil_from: float = 0.0
    distil_weight: float = 0.9

    def context_at(self, progress: float) -> int:
        """Tokens per row at `progress` (0 to 1) of the schedule."""
        return [phase.context for phase in self.phases if phase.start <= progress][-1]


_SHARED = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "rope_theta": 10_000.0, "max_position_embeddings": 2048, "head_dim": 64}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="pocket-code",
            description="Python completion, 5.5M parameters; the target of the demo and the benchmarks",
            shape=_SHARED
            | {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2},
            tokens=16_000_000,
            time_share=0.82,
            # Short rows first, because attention is the slowest part on a CPU; long rows last, so that the whole context is in use.
            phases=(Phase(0.0, 512), Phase(0.85, 2048)),
        ),
        Recipe(
            name="pocket-code-draft",
            description="Draft model for pocket-code with the same tokenizer, 0.8M parameters, distilled from it",
            shape=_SHARED
            | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
            tokens=16_000_000,
            time_share=0.18,
            phases=(Phase(0.0, 512), Phase(0.85, 1024)),
            muon_lr=6e-3,
            adamw_lr=6e-3,
            weight_decay=0.0,
            teacher="pocket-code",
            distil_from=0.35,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: if there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown pocket model {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def smoke(full: Recipe) -> Recipe:
    """The same recipe shrunk to train in seconds: for tests and for trying out a change. Its output is noise."""
    shape = {
        **full.shape,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return replace(full, shape=shape, tokens=8192, tokens_per_step=512, warmup_tokens=1024, phases=(Phase(0.0, 64), Phase(0.5, 128)))


def build_order(names: Sequence[str] | None) -> list[Recipe]:
    """Recipes to run for `names` (all when None), every teacher before its students; teachers that were not named are not added.

    Raises:
        UsageError: if a name is unknown.
    """
    wanted = [recipe(name) for name in (names or list(RECIPES))]
    return sorted(wanted, key=lambda item: (item.teacher is not None, list(RECIPES).index(item.name)))

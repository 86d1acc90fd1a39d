"""Recipes of the pocket models, as data: a new pocket model is a new row here.

Learning rates are for Muon with the update scaled to AdamW's size (Moonlight, arXiv 2502.16982, sec. 2.2), so both optimizers
share one order of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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

    @property
    def parent(self) -> str | None:
        """Name of the pocket model that must be finished before this one can be trained, if any."""
        return self.teacher

    def context_at(self, progress: float) -> int:
        """Tokens per row at `progress` (0 to 1) of the schedule."""
        return [phase.context for phase in self.phases if phase.start <= progress][-1]


@dataclass(frozen=True, slots=True)
class EditRecipe(Recipe):
    """A model that undoes typing slips; `shape` holds keyword arguments of `transformers.BartConfig`, a phase's context its longest target.

    Attributes:
        rates: lowest and highest share of words and marks that are hit in a training example.
        embedding_from: pocket model whose embedding this one starts from, if any.
    """

    rates: tuple[float, float] = (0.01, 0.15)
    embedding_from: str | None = "pocket-code"

    @property
    def parent(self) -> str | None:
        """Where the embedding comes from."""
        return self.embedding_from


@dataclass(frozen=True, slots=True)
class NatRecipe(EditRecipe):
    """A drafter that fills blocks of slots for an editing model; `shape` holds the fields of `paceline.models.nat.NatConfig`.

    Attributes:
        pairs: training examples: damaged spans with the verifier's own greedy output for each.
        distilled: false trains on the undamaged spans instead, to measure what distillation is worth.
        glances: share of wrong slots' number that is revealed, at the start and at the end of the schedule.
        smoothing: label smoothing.
    """

    pairs: int = 10_000
    distilled: bool = True
    glances: tuple[float, float] = (0.5, 0.3)
    smoothing: float = 0.1

    @property
    def parent(self) -> str | None:
        """The verifier: its encoder is where this one starts, and its outputs are what it learns."""
        return self.teacher


@dataclass(frozen=True, slots=True)
class DenoiseRecipe(Recipe):
    """A masked diffusion model; `shape` holds keyword arguments of `transformers.LlamaConfig`, or `Qwen3Config` for layout `sdar`.

    Attributes:
        layout: of the checkpoint, and with it what sees what.
        block: positions per block, for `sdar`.
        start: pocket model whose weights this one begins with wherever both have them in the same shape; None begins at random. After 100
            steps of 2,048 tokens (masks drawn by rate), pocket-dlm was at 6.0 nats per masked token of code and 0.5 of answers; begun at
            random it was at 6.6 and 1.1.
        task_share: share of the steps whose rows are generated tasks instead of code.
        prompted: share of the code rows that begin with a given prompt of random length; the others may be masked anywhere.
    """

    layout: Literal["llada", "sdar"] = "llada"
    block: int = 4
    start: str | None = "pocket-code"
    task_share: float = 0.4
    prompted: float = 0.5

    @property
    def parent(self) -> str | None:
        """Where the weights come from."""
        return self.start


_SHARED = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, "rope_theta": 10_000.0, "max_position_embeddings": 2048, "head_dim": 64}

_CODE = _SHARED | {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
_DENOISER = _CODE | {"rms_norm_eps": 1e-6}  # what `pocket-code` has

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="pocket-code",
            description="Python completion, 5.5M parameters; the target of the demo and the benchmarks",
            shape=_CODE,
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
        EditRecipe(
            name="pocket-edit",
            description="Undoes typing slips in Python text, BART-class, 2.7M parameters; the target of the aggressive-decoding benchmarks",
            shape={
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 256,
                "d_model": 192,
                "encoder_layers": 3,
                "decoder_layers": 2,
                "encoder_attention_heads": 6,
                "decoder_attention_heads": 6,
                "encoder_ffn_dim": 384,
                "decoder_ffn_dim": 384,
                "dropout": 0.0,  # no text is seen twice
            },
            tokens=8_000_000,
            time_share=0.6,
            # Copying is learnt on short spans, where there is little to confuse; long ones only have to stretch it.
            phases=(Phase(0.0, 32), Phase(0.12, 64), Phase(0.4, 128)),
            tokens_per_step=2048,
            warmup_tokens=60_000,
            weight_decay=0.0,
        ),
        NatRecipe(
            name="pocket-edit-nat",
            description="Non-autoregressive drafter for pocket-edit: fills 25 slots in one pass, 2.6M parameters",
            shape={
                "vocabulary": VOCABULARY,
                "width": 192,
                "heads": 6,
                "encoder_layers": 3,
                "decoder_layers": 2,
                "encoder_ffn": 384,
                "decoder_ffn": 256,
                "positions": 256,
                "block": 25,
                "dropout": 0.0,
            },
            tokens=8_000_000,
            time_share=0.4,
            phases=(Phase(0.0, 48), Phase(0.2, 128)),
            tokens_per_step=1536,
            warmup_tokens=60_000,
            weight_decay=0.0,
            teacher="pocket-edit",
        ),
        DenoiseRecipe(
            name="pocket-dlm",
            description="Masked diffusion model of Python code and checkable tasks, LLaDA layout, 5.5M parameters",
            shape=_DENOISER,
            tokens=16_000_000,
            time_share=0.6,
            phases=(Phase(0.0, 192), Phase(0.5, 384), Phase(0.9, 768)),
        ),
        DenoiseRecipe(
            name="pocket-dlm-block",
            description="Block-diffusion model of Python code and checkable tasks, SDAR layout, blocks of 8, 5.5M parameters",
            shape=_DENOISER,
            tokens=16_000_000,
            time_share=0.4,
            phases=(Phase(0.0, 192), Phase(0.5, 384), Phase(0.9, 768)),  # a row is fed twice: noisy and clean
            layout="sdar",
            block=8,
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


_SMOKE_CODE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
_SMOKE_SHAPES: dict[type[Recipe], dict[str, int]] = {
    Recipe: _SMOKE_CODE,
    DenoiseRecipe: _SMOKE_CODE,
    EditRecipe: {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
    NatRecipe: {
        "width": 32,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn": 64,
        "decoder_ffn": 32,
    },
}
_SMOKE_OPTIONS: dict[type[Recipe], dict[str, int]] = {NatRecipe: {"pairs": 32}}


def smoke(full: Recipe) -> Recipe:
    """The same recipe shrunk to train in seconds: for tests and for trying out a change. Its output is noise."""
    shape = {**full.shape, **_SMOKE_SHAPES[type(full)]}
    options: dict[str, Any] = {"shape": shape, **_SMOKE_OPTIONS.get(type(full), {})}
    return replace(full, tokens=8192, tokens_per_step=512, warmup_tokens=1024, phases=(Phase(0.0, 64), Phase(0.5, 128)), **options)


def build_order(names: Sequence[str] | None) -> list[Recipe]:
    """Recipes to run for `names` (all when None), every parent before its children; parents that were not named are not added.

    Raises:
        UsageError: if a name is unknown.
    """
    wanted = [recipe(name) for name in (names or list(RECIPES))]
    return sorted(wanted, key=lambda item: (_generation(item), list(RECIPES).index(item.name)))


def _generation(item: Recipe) -> int:
    """How many models must have been made before this one."""
    return 0 if item.parent is None else 1 + _generation(RECIPES[item.parent])

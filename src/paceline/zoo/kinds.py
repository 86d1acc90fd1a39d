"""What differs between the kinds of pocket models, as data: course, validation, files and card. A recipe's type decides its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn

from paceline.core.errors import CheckpointError
from paceline.models.nat import NatDrafter
from paceline.models.nat_files import load_nat, save_nat
from paceline.zoo.card import make_card, render
from paceline.zoo.courses import Course, LanguageCourse
from paceline.zoo.denoise_card import make_denoise_card, render_denoise
from paceline.zoo.denoise_course import DenoiseCourse, kind_for
from paceline.zoo.denoise_evaluation import bits_per_byte_bound
from paceline.zoo.denoiser import kind_in, load_denoiser, save_denoiser
from paceline.zoo.distil import distilled_pairs, own_outputs
from paceline.zoo.edit_card import make_edit_card, render_edit
from paceline.zoo.edit_course import EditCourse
from paceline.zoo.edit_evaluation import teacher_forced_accuracy
from paceline.zoo.editor import load_editor
from paceline.zoo.evaluation import bits_per_byte
from paceline.zoo.material import Material
from paceline.zoo.nat_card import make_nat_card, render_nat
from paceline.zoo.nat_course import NatCourse
from paceline.zoo.nat_evaluation import draft_quality
from paceline.zoo.network import load_network, save_network
from paceline.zoo.packing import PackedDocuments
from paceline.zoo.pairs import EditPairs
from paceline.zoo.recipes import DenoiseRecipe, EditRecipe, NatRecipe, Recipe
from paceline.zoo.training import Progress

Figures = Callable[[nn.Module], dict[str, float]]


class AnyCard(Protocol):
    """What all cards tell; each kind's dataclass adds its own figures."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    parameters: int
    tokens: int
    seconds: float
    ended_by: str

    @property
    def headline(self) -> str:
        """Its quality in a few words."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one model is being made.

    Attributes:
        parent: the finished model that the recipe starts from, if it names one.
        folder: work folder of this model.
    """

    recipe: Any
    material: Material
    parent: nn.Module | None
    folder: Path
    device: torch.device

    @property
    def verifier(self) -> nn.Module:
        """The parent of a drafter.

        Raises:
            CheckpointError: if there is none.
        """
        if self.parent is None:
            raise CheckpointError(f"{self.recipe.name} needs the model it drafts for; name it as the recipe's teacher")
        return self.parent


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of making a pocket model.

    Attributes:
        course: what it learns.
        validation: figures for the metrics file, now and then during training.
        save, load: its files, weights in bf16; loading gives fp32 on the CPU.
        card: measures the exported model (site, model, how training ended, prompts to measure on).
        render: the card as Markdown.
    """

    course: Callable[[Site], Course]
    validation: Callable[[Site], Figures]
    save: Callable[[nn.Module, Path], None]
    load: Callable[[Path], nn.Module]
    card: Callable[[Site, nn.Module, Progress, int], Any]
    render: Callable[[Any], str]


def _language_course(site: Site) -> Course:
    return LanguageCourse(site.recipe, PackedDocuments(site.material.train, site.recipe.seed), site.device, site.parent)


def _language_validation(site: Site) -> Figures:
    documents, size = site.material.quick_validation()
    return lambda network: {"validation_bits_per_byte": bits_per_byte(network, documents, size)}


def _language_card(site: Site, network: nn.Module, reached: Progress, prompts: int) -> Any:
    return make_card(site.recipe, network, site.parent, reached, site.material, prompts=prompts, samples=min(3, prompts))


def _edit_course(site: Site) -> Course:
    pairs = EditPairs(site.material.train_texts, site.material.tokenizer, site.recipe.seed, site.recipe.rates)
    return EditCourse(site.recipe, pairs, site.device, site.parent)


def _edit_validation(site: Site) -> Figures:
    pairs = EditPairs(site.material.validation_texts, site.material.tokenizer, site.recipe.seed, site.recipe.rates).pairs(
        "validation", 64, 96
    )
    return lambda network: {"validation_accuracy": teacher_forced_accuracy(network, pairs)}


def _edit_card(site: Site, network: nn.Module, reached: Progress, prompts: int) -> Any:
    return make_edit_card(site.recipe, network, reached, site.material, prompts)


def _nat_course(site: Site) -> Course:
    recipe, parent = site.recipe, site.verifier
    data = EditPairs(site.material.train_texts, site.material.tokenizer, recipe.seed, recipe.rates)
    longest = max(phase.context for phase in recipe.phases)
    if recipe.distilled:
        site.folder.mkdir(parents=True, exist_ok=True)
        pairs = distilled_pairs(parent, data, recipe.pairs, longest, site.folder / "distilled.json")
    else:
        pairs = data.pairs("distil", recipe.pairs, longest)
    return NatCourse(recipe, pairs, site.device, parent)


def _nat_validation(site: Site) -> Figures:
    recipe, parent = site.recipe, site.verifier
    pairs = EditPairs(site.material.validation_texts, site.material.tokenizer, recipe.seed, recipe.rates).pairs("validation", 32, 64)
    outputs = own_outputs(parent, pairs, 64)
    sources = [pair.source for pair in pairs]

    def figures(network: nn.Module) -> dict[str, float]:
        return {"validation_tokens_per_call": draft_quality(_nat(network), sources, outputs, _nat(network).config.block).tokens_per_call}

    return figures


def _nat(network: nn.Module) -> NatDrafter:
    return cast(NatDrafter, network)


def _save_nat(network: nn.Module, folder: Path) -> None:
    save_nat(_nat(network), folder)


def _nat_card(site: Site, network: nn.Module, reached: Progress, prompts: int) -> Any:
    return make_nat_card(site.recipe, _nat(network), site.verifier, reached, site.material, prompts)


def _denoise_course(site: Site) -> Course:
    documents = PackedDocuments(site.material.train, site.recipe.seed)
    return DenoiseCourse(site.recipe, documents, site.material.tokenizer, site.device, site.parent)


def _denoise_validation(site: Site) -> Figures:
    documents, size = site.material.quick_validation()
    kind = kind_for(site.recipe)
    return lambda network: {"validation_bits_per_byte_bound": bits_per_byte_bound(network, kind, documents, size, samples=1)}


def _save_denoise(network: nn.Module, folder: Path) -> None:
    save_denoiser(network, kind_in(network), folder)


def _denoise_card(site: Site, network: nn.Module, reached: Progress, prompts: int) -> Any:
    return make_denoise_card(site.recipe, network, site.parent, reached, site.material, prompts)


KINDS: dict[type[Recipe], Kind] = {
    Recipe: Kind(_language_course, _language_validation, save_network, load_network, _language_card, render),
    EditRecipe: Kind(_edit_course, _edit_validation, save_network, load_editor, _edit_card, render_edit),
    NatRecipe: Kind(_nat_course, _nat_validation, _save_nat, load_nat, _nat_card, render_nat),
    DenoiseRecipe: Kind(_denoise_course, _denoise_validation, _save_denoise, load_denoiser, _denoise_card, render_denoise),
}


def kind_of(recipe: Recipe) -> Kind:
    """The kind that a recipe's type names."""
    return KINDS[type(recipe)]

"""The recipe table and its order of building."""

from __future__ import annotations

import pytest
from torch import nn

from paceline.core.errors import UsageError
from paceline.models.nat import NatConfig, new_nat
from paceline.zoo.denoise_course import kind_for, shape_of
from paceline.zoo.denoiser import new_denoiser
from paceline.zoo.editor import new_editor
from paceline.zoo.network import new_network, parameter_count
from paceline.zoo.recipes import RECIPES, DenoiseRecipe, EditRecipe, NatRecipe, Recipe, build_order, recipe, smoke

MAX_PARAMETERS = {Recipe: 6_000_000, DenoiseRecipe: 6_000_000, EditRecipe: 3_500_000, NatRecipe: 2_620_000}  # 12, 12, 7, 5.2 MB


def network_of(made: Recipe) -> nn.Module:
    """The untrained network of a recipe."""
    if isinstance(made, NatRecipe):
        return new_nat(NatConfig(**made.shape), made.seed)  # type: ignore[arg-type]
    if isinstance(made, DenoiseRecipe):
        return new_denoiser(kind_for(made), shape_of(made), made.seed)
    return (new_editor if isinstance(made, EditRecipe) else new_network)(made.shape, made.seed)


@pytest.mark.parametrize("name", [name for name, made in RECIPES.items() if type(made) in MAX_PARAMETERS])
def test_pocket_models_are_small_and_share_a_vocabulary(name: str) -> None:
    made = recipe(name)
    assert parameter_count(network_of(made)) < MAX_PARAMETERS[type(made)]
    assert made.shape.get("vocab_size", made.shape.get("vocabulary")) == RECIPES["pocket-code"].shape["vocab_size"]
    assert made.phases[0].start == 0.0
    positions = made.shape.get("max_position_embeddings", made.shape.get("positions"))
    assert max(phase.context for phase in made.phases) <= positions  # type: ignore[operator]


def test_parents_come_first() -> None:
    for names in (["pocket-edit-nat", "pocket-edit", "pocket-code-draft", "pocket-code"], None):
        order = [made.name for made in build_order(names)]
        assert all(order.index(made.parent) < order.index(made.name) for made in RECIPES.values() if made.parent and made.name in order)
    assert [made.name for made in build_order(["pocket-code-draft"])] == ["pocket-code-draft"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown pocket model 'nope'; choose from pocket-code"):
        build_order(["nope"])


def test_phases_follow_the_schedule() -> None:
    full = RECIPES["pocket-code"]
    assert [full.context_at(share) for share in (0.0, 0.5, 0.84, 0.85, 1.0)] == [512, 512, 512, 2048, 2048]


def test_smoke_keeps_everything_but_the_size() -> None:
    small = smoke(RECIPES["pocket-code-draft"])
    assert (small.name, small.teacher, small.seed) == ("pocket-code-draft", "pocket-code", RECIPES["pocket-code-draft"].seed)
    assert all(parameter_count(network_of(smoke(made))) < 200_000 for made in RECIPES.values() if type(made) in MAX_PARAMETERS)

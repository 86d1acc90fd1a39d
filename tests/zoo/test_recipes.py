"""The recipe table and its order of building."""

from __future__ import annotations

import pytest

from paceline.core.errors import UsageError
from paceline.zoo.network import new_network, parameter_count
from paceline.zoo.recipes import RECIPES, build_order, recipe, smoke

MAX_PARAMETERS = 6_000_000  # 12 MB in bf16


@pytest.mark.parametrize("name", RECIPES)
def test_pocket_models_are_small_and_share_a_vocabulary(name: str) -> None:
    made = recipe(name)
    assert parameter_count(new_network(made.shape, made.seed)) < MAX_PARAMETERS
    assert made.shape["vocab_size"] == RECIPES["pocket-code"].shape["vocab_size"]
    assert made.phases[0].start == 0.0
    assert max(phase.context for phase in made.phases) <= made.shape["max_position_embeddings"]


def test_teachers_come_first() -> None:
    for names in (["pocket-code-draft", "pocket-code"], None):
        order = [made.name for made in build_order(names)]
        assert order.index("pocket-code") < order.index("pocket-code-draft")
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
    assert parameter_count(new_network(small.shape, 0)) < 200_000

"""Names of the pocket models and where they lie. Imports nothing heavy: the command line asks it at start-up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.core.errors import CheckpointError

MODELS_FOLDER = Path(__file__).parent / "models"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class PocketModel:
    """One pocket model of the package.

    Attributes:
        available: whether its weights are there; without them `paceline zoo build NAME` makes them.
    """

    name: str
    path: Path
    description: str
    available: bool


def pocket_models() -> dict[str, PocketModel]:
    """Every pocket model that has a recipe, by name, built or not."""
    from paceline.zoo.recipes import RECIPES

    return {
        name: PocketModel(name, MODELS_FOLDER / name, recipe.description, (MODELS_FOLDER / name / WEIGHTS).is_file())
        for name, recipe in RECIPES.items()
    }


def resolve(name: str) -> Path | None:
    """Folder of the pocket model called `name`, or None if there is no such model or its weights are missing."""
    model = pocket_models().get(name)
    return model.path if model is not None and model.available else None


def require_built(name: str) -> None:
    """Check that `name`, if it is a pocket model's (and no folder here), has its weights.

    Raises:
        CheckpointError: if not, naming the command that makes them.
    """
    model = pocket_models().get(name)
    if model is not None and not model.available and not Path(name).is_dir():
        raise CheckpointError(f"pocket model {name!r} is not in this installation; make it with `paceline zoo build {name}`")

"""`paceline zoo build`: corpus, tokenizer, training, export and card, for any of the recipes, resumable at every stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paceline.core.errors import CheckpointError, UsageError
from paceline.zoo.card import write_card
from paceline.zoo.display import training_display
from paceline.zoo.export import export
from paceline.zoo.kinds import AnyCard, Site, kind_of
from paceline.zoo.material import Material, prepare
from paceline.zoo.recipes import RECIPES, Recipe, build_order, smoke
from paceline.zoo.registry import MODELS_FOLDER, WEIGHTS
from paceline.zoo.tokenizer import VOCABULARY
from paceline.zoo.training import Trainer

SMOKE_FILES = 40  # files of the corpus that a smoke build reads


@dataclass(frozen=True, slots=True)
class _Plan:
    """Settings that every recipe of one build shares."""

    work_dir: Path
    out: Path
    device: torch.device
    resume: bool
    progress: bool
    card_prompts: int


def default_work_dir() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/paceline/zoo`, or `~/.cache/paceline/zoo`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "zoo"


def build(
    names: Sequence[str] | None = None,
    work_dir: Path | None = None,
    max_minutes: float | None = None,
    device: str | torch.device = "auto",
    resume: bool = True,
    progress: bool = True,
    smoke_size: bool = False,
    out: Path | None = None,
) -> list[AnyCard]:
    """Build pocket models from the interpreter's standard library, parents before children.

    Args:
        names: recipes to build; all when None. A model whose parent is not named starts from the one in `out`, else the shipped one.
        work_dir: checkpoints, metrics and tokenizer; the user's cache folder when None.
        max_minutes: limit for all training together, split by the recipes' time shares; the learning rate anneals to meet it.
            None: token budgets alone.
        device: "auto", "cpu" or "cuda".
        resume: continue from checkpoints found in `work_dir`.
        progress: show a progress bar.
        smoke_size: micro models on a few files, in seconds; the result is noise.
        out: where finished models go, one folder each; the package's own model folder when None.

    Returns:
        One card per model, in build order.

    Raises:
        UsageError: unknown name, non-positive limit, or no device of that kind.
        CheckpointError: a checkpoint of another recipe or corpus, or a missing parent.
    """
    if max_minutes is not None and max_minutes <= 0:
        raise UsageError(f"--max-minutes must be positive, not {max_minutes:g}")
    recipes = [smoke(item) if smoke_size else item for item in build_order(names)]
    plan = _Plan(
        work_dir=work_dir or default_work_dir(),
        out=out or MODELS_FOLDER,
        device=choose_device(device),
        resume=resume,
        progress=progress,
        card_prompts=1 if smoke_size else 16,
    )
    made = {item.name for item in recipes}
    outside = [item for item in recipes if item.parent is not None and item.parent not in made]
    ancestor = None if any(item.parent is None for item in recipes) else _parent_folder(outside[0], plan)
    material = prepare(plan.work_dir, VOCABULARY, SMOKE_FILES if smoke_size else None, ancestor)
    minutes_per_share = None if max_minutes is None else max_minutes / sum(item.time_share for item in recipes)
    return [
        _build_one(item, material, plan, None if minutes_per_share is None else 60 * minutes_per_share * item.time_share)
        for item in recipes
    ]


def choose_device(device: str | torch.device) -> torch.device:
    """The device to train on.

    Raises:
        UsageError: if it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible; use --device cpu")
    return chosen


def _build_one(item: Recipe, material: Material, plan: _Plan, limit_seconds: float | None) -> AnyCard:
    """Train one recipe to the end of its schedule, export it and write its card."""
    kind = kind_of(item)
    site = Site(item, material, _parent(item, plan), plan.work_dir / item.name, plan.device)
    with training_display(item.name, enabled=plan.progress) as report:
        trainer = Trainer(
            recipe=item,
            course=kind.course(site),
            folder=site.folder,
            device=plan.device,
            limit_seconds=limit_seconds,
            validate=kind.validation(site),
            on_step=report,
        )
        reached = trainer.run(resume=plan.resume)
    folder = plan.out / item.name
    exported = export(
        trainer.model, material.tokenizer, folder, kind.save, kind.load
    )  # the card measures what was saved, not what was trained
    card = kind.card(site, exported, reached, plan.card_prompts)
    write_card(card, kind.render(card), folder)
    made: AnyCard = card
    return made


def _parent(item: Recipe, plan: _Plan) -> nn.Module | None:
    """The finished model that a recipe starts from; None if it needs none."""
    if item.parent is None:
        return None
    return kind_of(RECIPES[item.parent]).load(_parent_folder(item, plan)).to(plan.device).requires_grad_(False)


def _parent_folder(item: Recipe, plan: _Plan) -> Path:
    """Where a recipe's parent lies: the one built before, else the shipped one."""
    assert item.parent is not None
    found = next((place for place in (plan.out / item.parent, MODELS_FOLDER / item.parent) if (place / WEIGHTS).is_file()), None)
    if found is None:
        raise CheckpointError(f"{item.name} is made from {item.parent}, which is not built; run `paceline zoo build {item.parent}` first")
    return found

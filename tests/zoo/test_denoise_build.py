"""The diffusion pocket models: a build in seconds, rows that teach what is asked, a bound that holds, files that load as trained."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import log
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from paceline.engine.canvas_logits import canvas_logits
from paceline.engine.load import load
from paceline.zoo.build import build
from paceline.zoo.corpus import Split
from paceline.zoo.courses import Place
from paceline.zoo.denoise_card import DenoiseCard
from paceline.zoo.denoise_course import MASK_ID, DenoiseCourse, kind_for, shape_of
from paceline.zoo.denoise_evaluation import bits_per_byte_bound
from paceline.zoo.denoiser import denoiser_logits, load_denoiser, masked_logits, new_denoiser, taken_over
from paceline.zoo.network import END_OF_TEXT_ID
from paceline.zoo.packing import Ids, PackedDocuments
from paceline.zoo.recipes import RECIPES, DenoiseRecipe, smoke
from paceline.zoo.tasks import problems

NAMES = ["pocket-dlm", "pocket-dlm-block"]
MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("denoise-build")
    return base / "work", base / "out"


@pytest.fixture(scope="module")
def cards(folders: tuple[Path, Path]) -> list[Any]:
    """Parent and both children, so that weights can be taken over."""
    return build(["pocket-code", *NAMES], work_dir=folders[0], out=folders[1], smoke_size=True, device="cpu", progress=False)[1:]


def recipe_of(name: str) -> DenoiseRecipe:
    return cast(DenoiseRecipe, smoke(RECIPES[name]))


def test_cards_are_what_is_written(cards: list[Any], folders: tuple[Path, Path]) -> None:
    for card, name in zip(cards, NAMES, strict=True):
        assert isinstance(card, DenoiseCard)
        folder = folders[1] / name
        assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(card)))
        shown = (folder / "README.md").read_text(encoding="utf-8")
        assert f"{card.parameters:,}" in shown
        assert str(folders[0].parent) not in shown
        assert set(card.solved) == {"arithmetic", "sorting", "brackets", "records"}
        assert card.start is not None
        assert card.start[0] == "pocket-code"
        assert card.start[1] > 0.99
        assert "bits per byte" in card.headline


@pytest.mark.parametrize("name", NAMES)
def test_files_load_as_what_was_trained(cards: list[Any], folders: tuple[Path, Path], name: str) -> None:
    folder, kind = folders[1] / name, kind_for(recipe_of(name))
    llm = load(folder, dtype="float32", device="cpu", kv_tokens=256)
    spec = llm.runner.decoder.config.diffusion
    assert spec is not None
    assert (spec.mask, spec.block) == (MASK_ID, 8 if name.endswith("block") else None)
    ids = torch.randint(16, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = denoiser_logits(load_denoiser(folder), ids, kind.visible(24))
    torch.testing.assert_close(canvas_logits(llm.runner, ids), expected, rtol=0, atol=2e-4)
    output = llm.generate("def f(x):\n", max_tokens=16, ignore_eos=True)[0]
    assert len(output.token_ids) == 16
    assert MASK_ID not in output.token_ids


def test_weights_are_taken_over_where_shapes_agree(folders: tuple[Path, Path], cards: list[Any]) -> None:
    """Negative control: of a wider network nothing is."""
    for name in NAMES:
        recipe = recipe_of(name)
        wide = new_denoiser(kind_for(recipe), {**shape_of(recipe), "hidden_size": 48, "head_dim": 24}, 1)
        assert taken_over(kind_for(recipe), shape_of(recipe), wide) == 0.0
        same = new_denoiser(kind_for(recipe), shape_of(recipe), 1)
        assert taken_over(kind_for(recipe), shape_of(recipe), same) == 1.0
        assert torch.equal(new_denoiser(kind_for(recipe), shape_of(recipe), 2, wide).state_dict()["model.norm.weight"], torch.ones(32))


def course_of(tokenizer: Any, documents: list[Ids], **changes: Any) -> DenoiseCourse:
    recipe = replace(recipe_of("pocket-dlm"), **changes)
    return DenoiseCourse(recipe, PackedDocuments(documents, 1), tokenizer, torch.device("cpu"))


def test_rows_of_tasks_hide_answers_only(tokenizer: Any, documents: list[Ids]) -> None:
    course = course_of(tokenizer, documents)
    rows = course.task_rows(Place(3, 0, 0.0, 64), torch.Generator().manual_seed(0))
    drawn = list(problems(len(rows.ids), Split.TRAIN, seed=3))
    for ids, answers, problem in zip(rows.ids, rows.answers, drawn, strict=True):
        assert tokenizer.decode(ids[~answers]) == problem.prompt
        assert tokenizer.decode(ids[answers], skip_special_tokens=True) == problem.answer
        assert ids[-1] == END_OF_TEXT_ID
        assert answers[-1]


def test_some_rows_of_code_have_a_prompt(tokenizer: Any, documents: list[Ids]) -> None:
    place, generator = Place(0, 0, 0.0, 16), torch.Generator().manual_seed(0)
    free = course_of(tokenizer, documents, prompted=0.0).code_rows(place, generator)
    assert free.answers.all()
    asked = course_of(tokenizer, documents, prompted=1.0).code_rows(place, generator)
    assert not asked.answers.all()
    assert asked.answers[:, -1].all()
    assert (asked.answers.int().diff(dim=1) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_knows_nothing_needs_log_of_the_vocabulary(name: str, documents: list[Ids]) -> None:
    recipe = recipe_of(name)
    network = new_denoiser(kind_for(recipe), shape_of(recipe), 0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    size = 1000
    tokens = sum(map(len, documents))
    bound = bits_per_byte_bound(network, kind_for(recipe), documents, size, context=64, samples=3)
    assert bound == pytest.approx(tokens * log(4096) / log(2) / size, rel=1e-6)


def test_blocks_do_not_see_what_follows_them() -> None:
    """The noisy copy of a block sees clean blocks before it alone; its own clean copy would give the answer away."""
    recipe = recipe_of("pocket-dlm-block")
    kind = kind_for(recipe)
    network = new_denoiser(kind, shape_of(recipe), 3)
    ids = torch.randint(16, 4096, (1, 24), generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(1, 24, dtype=torch.bool)
    masked[0, 8:16] = True
    changed = ids.clone()
    changed[0, 8:] = 17
    earlier = ids.clone()
    earlier[0, 0] = 18
    with torch.no_grad():
        first, second, third = (masked_logits(network, kind, row, masked) for row in (ids, changed, earlier))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize("name", NAMES)
def test_lessons_are_functions_of_the_step(name: str, tokenizer: Any, documents: list[Ids]) -> None:
    recipe = recipe_of(name)
    course = DenoiseCourse(recipe, PackedDocuments(documents, 1), tokenizer, torch.device("cpu"))
    network: nn.Module = course.network()
    lessons = [course.lesson(network, Place(step, 128 * step, 0.1, 32)) for step in (0, 1, 2, 1)]
    values = [float(lesson.loss.detach()) for lesson in lessons]
    assert values[3] == values[1]
    assert len(set(values)) == 3
    assert np.isfinite(values).all()


def test_shipped_models_stay_small_and_solve_problems() -> None:
    from paceline.zoo.registry import MODELS_FOLDER

    for name in NAMES:
        file = MODELS_FOLDER / name / "model.safetensors"
        if file.is_file():  # built by `paceline zoo build`, which takes an hour
            assert file.stat().st_size < MOST_BYTES
            card = json.loads((file.parent / "card.json").read_text(encoding="utf-8"))
            assert max(card["solved"].values()) > 0.2

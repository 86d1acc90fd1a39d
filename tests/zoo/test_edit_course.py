"""Editing models train on what they should: shifted inputs, no padding in the loss, and the same after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import nn

from paceline.zoo.courses import Place
from paceline.zoo.edit_course import EditCourse
from paceline.zoo.edit_evaluation import teacher_forced_accuracy
from paceline.zoo.editor import START_ID, editor_hidden, editor_logits, greedy_edits, new_editor, shifted
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID, embedding_of, new_network
from paceline.zoo.pairs import EditPairs, padded
from paceline.zoo.recipes import RECIPES, EditRecipe, Phase, Recipe, smoke
from paceline.zoo.training import METRICS, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU = torch.device("cpu")


@pytest.fixture
def tiny(tokenizer: PreTrainedTokenizerBase) -> EditRecipe:
    full = cast(EditRecipe, smoke(RECIPES["pocket-edit"]))
    shape = {**full.shape, "vocab_size": len(tokenizer)}
    return replace(full, shape=shape, tokens=900, tokens_per_step=64, warmup_tokens=128, phases=(Phase(0.0, 16), Phase(0.5, 32)))


@pytest.fixture
def course(tiny: EditRecipe, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> EditCourse:
    return EditCourse(tiny, EditPairs(texts, tokenizer, tiny.seed), CPU)


def run(course: EditCourse, folder: Path, steps: int | None = None, recipe: EditRecipe | None = None) -> dict[str, torch.Tensor]:
    trainer = Trainer(recipe or course.recipe, course, folder, CPU)
    trainer.run(max_steps=steps)
    return trainer.model.state_dict()


def test_resumed_run_equals_uninterrupted_run(course: EditCourse, tmp_path: Path) -> None:
    whole = run(course, tmp_path / "whole")
    for steps in (3, 2, None):
        parts = run(replace(course), tmp_path / "parts", steps)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / METRICS).read_text().splitlines()]
    assert {line["context"] for line in lines} == {16, 32}


def test_the_loss_counts_every_token_once_and_padding_never(course: EditCourse) -> None:
    network = course.network()
    place = Place(step=1, tokens=0, share=0.0, context=32)
    lesson = course.lesson(network, place)
    batch = course.data.batch(1, 4, 32)
    nats, tokens = 0.0, 0
    for source, target in zip(batch.source, batch.target, strict=True):  # each row alone, without padding
        ids, wanted = source[source != PAD_ID][None], target[target != PAD_ID][None]
        logits = editor_logits(network, editor_hidden(network, ids, shifted(wanted)))
        nats += float(nn.functional.cross_entropy(logits[0].detach(), wanted[0], reduction="sum"))
        tokens += wanted.shape[1]
    assert lesson.tokens == tokens
    assert float(lesson.loss.detach()) == pytest.approx(nats / tokens, rel=1e-5)


def test_inputs_are_shifted_behind_the_start_symbol() -> None:
    assert shifted(torch.tensor([[5, 6, END_OF_TEXT_ID, PAD_ID]])).tolist() == [[START_ID, 5, 6, END_OF_TEXT_ID]]


def test_training_learns(course: EditCourse, tmp_path: Path) -> None:
    longer = replace(course.recipe, tokens=6000)
    run(replace(course, recipe=longer), tmp_path, recipe=longer)
    losses = [json.loads(line)["cross_entropy"] for line in (tmp_path / METRICS).read_text().splitlines()]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_the_start_is_aligned_and_inherits_the_embedding(tiny: EditRecipe, micro: Recipe) -> None:
    like = new_network({**micro.shape, "vocab_size": tiny.shape["vocab_size"], "hidden_size": 64, "head_dim": 16}, seed=1)
    network = cast(Any, new_editor(tiny.shape, 0, like))
    model = network.model
    assert torch.equal(model.encoder.embed_positions.weight, model.decoder.embed_positions.weight)
    cross = model.decoder.layers[0].encoder_attn
    assert torch.equal(cross.q_proj.weight, cross.k_proj.weight)
    assert not torch.equal(embedding_of(network), embedding_of(new_editor(tiny.shape, 0)))
    assert network.config.forced_eos_token_id is None  # the released default would end outputs at an unrelated id
    assert network.config.decoder_start_token_id == START_ID


def test_greedy_edits_follow_the_network(tiny: EditRecipe, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Batched, padded generation gives what one forward per token gives."""
    network = new_editor(tiny.shape, 5).eval()
    with torch.no_grad():
        embedding_of(network).mul_(20)
    pairs = EditPairs(texts, tokenizer, 1).pairs("few", 3, 24)
    for pair, output in zip(pairs, greedy_edits(network, padded(pairs).source, 12), strict=True):
        slow: list[int] = []
        while len(slow) < 12:
            inputs = torch.tensor([[START_ID, *slow]])
            token = int(editor_logits(network, editor_hidden(network, torch.tensor([pair.source]), inputs))[0, -1].argmax())
            if token == END_OF_TEXT_ID:
                break
            slow.append(token)
        assert output == slow


def test_accuracy_of_an_indifferent_network_is_chance(tiny: EditRecipe, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = EditPairs(texts, tokenizer, 1).pairs("few", 20, 32)
    assert teacher_forced_accuracy(new_editor(tiny.shape, 5), pairs) < 0.2

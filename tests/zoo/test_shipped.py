"""The models in the package are what their cards say, and good for what they are for."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from paceline.zoo.corpus import Split, stdlib_files
from paceline.zoo.evaluation import acceptance_by_depth, bits_per_byte, encode
from paceline.zoo.network import load_network, parameter_count
from paceline.zoo.packing import encode_documents
from paceline.zoo.prompts import held_out_prompts
from paceline.zoo.recipes import RECIPES, DenoiseRecipe, NatRecipe, Recipe
from paceline.zoo.registry import resolve
from paceline.zoo.tokenizer import load_tokenizer

MAX_BYTES = 16 * 10**6
LANGUAGE_MODELS = [name for name, made in RECIPES.items() if type(made) is Recipe]
WITH_TOKENIZER = [name for name, made in RECIPES.items() if not isinstance(made, (NatRecipe, DenoiseRecipe))]


def folder_of(name: str) -> Path:
    folder = resolve(name)
    assert folder is not None, f"{name} is not in the package"
    return folder


def card_of(name: str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder_of(name) / "card.json").read_text(encoding="utf-8"))
    return card


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_card_tells_the_truth(name: str) -> None:
    folder, card = folder_of(name), card_of(name)
    network = load_network(folder)
    assert parameter_count(network) == card["parameters"]
    assert (folder / "model.safetensors").stat().st_size < MAX_BYTES
    assert {key: card["recipe"]["shape"][key] for key in ("hidden_size", "num_hidden_layers")} == {
        "hidden_size": network.config.hidden_size,
        "num_hidden_layers": network.config.num_hidden_layers,
    }
    assert card["name"] == name
    assert f"{card['validation_bits_per_byte']:.3f} bits per byte" in (folder / "README.md").read_text(encoding="utf-8")


def test_target_predicts_unseen_source_better_than_xz() -> None:
    folder = folder_of("pocket-code")
    tokenizer, network = load_tokenizer(folder), load_network(folder)
    texts = [file.text for file in stdlib_files(split=Split.VALIDATION) if 5_000 < len(file.text) < 20_000][:3]
    size = sum(len(text.encode()) for text in texts)
    packed = 8 * sum(len(lzma.compress(text.encode(), preset=9)) for text in texts) / size
    assert bits_per_byte(network, encode_documents(texts, tokenizer), size) < packed


def test_models_share_one_tokenizer() -> None:
    contents = {(folder_of(name) / "tokenizer.json").read_bytes() for name in WITH_TOKENIZER if resolve(name)}
    assert len(contents) == 1


def test_draft_is_accepted_on_held_out_files() -> None:
    target, draft = folder_of("pocket-code"), folder_of("pocket-code-draft")
    tokenizer = load_tokenizer(target)
    prompts = [encode(tokenizer, prompt.prefix) for prompt in held_out_prompts(2, 600, 200)]
    measured = acceptance_by_depth(load_network(draft), load_network(target), prompts, tokens=64, depth=3)
    assert measured[0] > 0.4  # a draft that knew only token frequencies would have about 0.05

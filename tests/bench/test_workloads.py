"""Workloads: the same prompts every time, of the promised kind and length."""

from __future__ import annotations

import ast

import pytest

from paceline.bench.workloads import SHAPES, USUAL, WORKLOADS, edit_prompt, find_workloads, most_frequent_name
from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.engine.prompts import Tokenizer


class Characters:
    """Token i is character i."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) % 256 for character in text]


TOKENIZER = Tokenizer(Characters())


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_prompts_are_repeatable_distinct_and_bounded(name: str) -> None:
    workload = WORKLOADS[name]
    prompts = workload.prompts(4, TOKENIZER, 256, 700, seed=3)
    assert prompts == workload.prompts(4, TOKENIZER, 256, 700, seed=3)
    assert len(set(prompts)) == 4
    assert all(0 < len(prompt) <= 700 for prompt in prompts)
    assert all(0 <= token < 256 for prompt in prompts for token in prompt)


def test_only_random_prompts_depend_on_the_seed_and_do_without_a_tokenizer() -> None:
    undraftable = WORKLOADS["undraftable"]
    assert undraftable.prompts(2, None, 256, 700, seed=1) != undraftable.prompts(2, None, 256, 700, seed=2)
    assert undraftable.sampling == Sampling(temperature=1.5)
    with pytest.raises(UsageError, match="no tokenizer"):
        WORKLOADS["completion"].prompts(1, None, 256, 700, seed=1)
    with pytest.raises(UsageError, match="no room"):
        undraftable.prompts(1, None, 256, 0, seed=1)


def test_long_prompts_are_long() -> None:
    (prompt,) = WORKLOADS["long"].prompts(1, TOKENIZER, 256, 5000, seed=0)
    assert len(prompt) == 1500
    assert len(WORKLOADS["completion"].prompts(1, TOKENIZER, 256, 5000, seed=0)[0]) < 1500


def test_an_edit_repeats_the_original_with_one_name_changed() -> None:
    original = "def area(width, height):\n    # width first\n    return width * height\n\n" * 3
    assert most_frequent_name(original) == "width"
    prompt = edit_prompt(original, shown=0.5)
    before, after = prompt.split("# After")
    assert original in before
    head = after.split("\n", 1)[1]
    assert head == original.replace("width", "width_new")[: len(head)]
    assert head.count("\n") == original.count("\n") // 2


def test_code_without_names_can_still_be_edited() -> None:
    assert most_frequent_name("x = 1 if y else 2\n") == "value"


def test_structured_texts_are_valid_code_so_far() -> None:
    for shape in SHAPES:
        text = shape(9)
        assert len(text.splitlines()) >= 10
        closing = {"{": "}", "[": "]", "class": ""}
        ast.parse(text + next((end for start, end in closing.items() if start in text.splitlines()[0]), ""))


def test_unknown_workloads_are_named() -> None:
    assert [workload.name for workload in find_workloads(["long", "edit"])] == ["long", "edit"]
    assert [workload.name for workload in find_workloads(None)] == list(USUAL)
    with pytest.raises(UsageError, match=r"unknown workload 'poetry'; known: completion"):
        find_workloads(["poetry"])

"""Generated problems: their answers are right by an independent reading, they are distinct, and splits do not touch."""

from __future__ import annotations

import ast
import json
from collections import Counter
from itertools import pairwise

import pytest

from paceline.zoo.corpus import Split
from paceline.zoo.tasks import TASKS, Problem, problems


def right(problem: Problem) -> bool:
    """Read prompt and answer as text."""
    quoted = problem.prompt.partition("'")[2].rpartition("'")[0]
    answer = problem.answer.strip()
    if problem.task == "arithmetic":
        return bool(eval(problem.prompt.removeprefix("assert ") + problem.answer))
    if problem.task == "sorting":
        given = ast.literal_eval(problem.prompt[problem.prompt.index("[") : problem.prompt.index("]") + 1])
        found = ast.literal_eval(answer)
        down = "reverse=True" in problem.prompt
        return Counter(given) == Counter(found) and all(a >= b if down else a <= b for a, b in pairwise(found))
    if problem.task == "brackets":
        text = quoted + ast.literal_eval(answer)
        while (shorter := text.replace("()", "").replace("[]", "").replace("{}", "")) != text:
            text = shorter
        return text == ""
    found = json.loads(answer)
    return list(found) == sorted(found) and {key: str(value) for key, value in found.items()} == dict(
        pair.split("=") for pair in quoted.split("; ")
    )


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_only_they_are(task: str) -> None:
    for problem in problems(300, Split.TRAIN, tasks=(task,)):
        assert problem.task == task
        assert right(problem)
        assert problem.answer.endswith("\n")
        assert problem.answer.count("\n") == 1
        assert problem.solved_by(problem.answer)
        assert problem.solved_by(problem.answer + "assert")
        assert problem.solved_by(problem.answer.rstrip())
        assert not problem.solved_by(problem.answer.rstrip() + "0\n")
        assert not problem.solved_by("")


def test_a_wrong_answer_is_noticed() -> None:
    """The independent reading can fail."""
    (problem,) = problems(1, Split.TRAIN, tasks=("sorting",))
    assert not right(Problem("sorting", problem.prompt, " [0, 1]\n"))
    assert not right(Problem("brackets", "close('([') ==", " ')]'\n"))
    assert right(Problem("brackets", "close('([') ==", " '])'\n"))


def test_splits_do_not_touch() -> None:
    found = {split: {problem.prompt for problem in problems(400, split)} for split in Split}
    for split, prompts in found.items():
        assert len(prompts) == 400
        assert all(not prompts & others for other, others in found.items() if other is not split)


def test_tasks_take_turns_and_draws_are_seeded() -> None:
    first = list(problems(80, Split.HELD_OUT, seed=3))
    assert Counter(problem.task for problem in first) == dict.fromkeys(TASKS, 20)
    assert first == list(problems(80, Split.HELD_OUT, seed=3))
    assert first != list(problems(80, Split.HELD_OUT, seed=4))

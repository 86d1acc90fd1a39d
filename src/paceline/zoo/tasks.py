"""Generated tasks with checkable answers: arithmetic, sorting, closing brackets, reformatting records.

They stand beside code in the training text of the diffusion pocket models, so that what a decoder costs in quality is an exact number. A
problem is a line of Python-like text; its answer is the only right one. Which problems are held out is decided by the problem itself, so
that no run can train on what it is judged by.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from paceline.zoo.corpus import Split, split_of

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
PAIRS = {"(": ")", "[": "]", "{": "}"}
FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("ada", "alan", "grace", "edsger", "barbara", "donald", "hedy", "emmy"),
    "city": ("london", "paris", "oslo", "lima", "kyoto", "cairo", "quito", "bern"),
    "colour": ("red", "green", "blue", "black", "white", "amber"),
    "unit": ("cm", "kg", "s", "mol", "cd", "mm"),
}
NUMBERS = ("age", "size", "rank", "count")


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt and the text that must follow it, up to its line break.

    Args:
        task: name of the task.
        prompt: ends where the answer begins.
        answer: with its line break.
    """

    task: str
    prompt: str
    answer: str

    @property
    def split(self) -> Split:
        """Where it belongs, whoever draws it."""
        return split_of(self.prompt)

    def solved_by(self, text: str) -> bool:
        """Whether a continuation of the prompt begins with the answer."""
        return text.startswith(self.answer) or text == self.answer.rstrip("\n")


def arithmetic(random: Random) -> Problem:
    """Sums and differences of up to three digits, products of up to two."""
    sign = random.choice(list(OPERATIONS))
    most = 99 if sign == "*" else 999
    left, right = random.randint(0, most), random.randint(0, most)
    return Problem("arithmetic", f"assert {left} {sign} {right} ==", f" {OPERATIONS[sign](left, right)}\n")


def sorting(random: Random) -> Problem:
    """Three to eight numbers, possibly repeated, in ascending or descending order."""
    numbers = [random.randint(0, 99) for _ in range(random.randint(3, 8))]
    down = random.random() < 0.5
    call = f"sorted({numbers}, reverse=True)" if down else f"sorted({numbers})"
    return Problem("sorting", f"assert {call} ==", f" {sorted(numbers, reverse=down)}\n")


def brackets(random: Random) -> Problem:
    """An unfinished row of nested brackets, and what closes it."""
    waiting = random.choices(list(PAIRS), k=random.randint(1, 3))
    text = "".join(waiting)
    for _ in range(random.randint(2, 10)):
        if waiting and random.random() < 0.45:
            text += PAIRS[waiting.pop()]
        else:
            waiting.append(random.choice(list(PAIRS)))
            text += waiting[-1]
    if not waiting:
        waiting, text = ["("], f"{text}("
    return Problem("brackets", f"close('{text}') ==", " '" + "".join(PAIRS[bracket] for bracket in reversed(waiting)) + "'\n")


def records(random: Random) -> Problem:
    """A record as `key=value` pairs, rewritten as a dictionary with its keys in order."""
    keys = random.sample([*FIELDS, *NUMBERS], random.randint(2, 4))
    record: dict[str, str | int] = {key: random.choice(FIELDS[key]) if key in FIELDS else random.randint(0, 99) for key in keys}
    line = "; ".join(f"{key}={value}" for key, value in record.items())
    return Problem("records", f"parse('{line}') ==", f" {json.dumps(record, sort_keys=True)}\n")


TASKS: dict[str, Callable[[Random], Problem]] = {
    "arithmetic": arithmetic,
    "sorting": sorting,
    "brackets": brackets,
    "records": records,
}


def problems(count: int, split: Split, seed: int = 0, tasks: tuple[str, ...] = tuple(TASKS)) -> Iterator[Problem]:
    """Distinct problems of one split, the tasks taking turns.

    Args:
        count: how many.
        split: which.
        seed: of the draws.
        tasks: names.
    """
    random, seen = Random(f"{split.value} {seed}"), set[str]()
    while len(seen) < count:
        problem = TASKS[tasks[len(seen) % len(tasks)]](random)
        if problem.split == split and problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem

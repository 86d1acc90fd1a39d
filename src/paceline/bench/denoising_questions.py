"""What a diffusion model of Python is asked when ways of decoding it are compared: problems with one answer, and code to go on with."""

from __future__ import annotations

import ast
import io
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.bench.denoising_judges import Judge, continues
from paceline.core.errors import UsageError
from paceline.zoo.corpus import Split, held_out_files
from paceline.zoo.prompts import HeldOutPrompt, held_out_prompts
from paceline.zoo.tasks import Problem, problems

LEAST_LINES = 3  # of a prompt
CUTS = 12  # places tried for every prompt wanted


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and what is known of its answer.

    Args:
        prompt: text.
        problem: what must follow; `None` where code is to be continued.
    """

    prompt: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """What answers to questions are worth, an entry per question of the kind.

    Args:
        solved: whether problems are.
        parses: whether continued code parses.
        bits: per byte of it under the judge; empty without one, and answers without text are left out.
    """

    solved: tuple[float, ...]
    parses: tuple[float, ...]
    bits: tuple[float, ...]


def questions(count: int, chars: int, seed: int = 0) -> list[Question]:
    """As many held-out problems as pieces of held-out code to continue, in turn.

    Args:
        count: of both together.
        chars: longest piece of code.
        seed: of the problems.

    Raises:
        UsageError: if there is not enough held-out code.
    """
    asked = [Question(problem.prompt, problem) for problem in problems(count - count // 2, Split.HELD_OUT, seed)]
    code = [Question(text) for text in code_prompts(count // 2, chars)]
    return [each for pair in zip(asked, [*code, None], strict=False) for each in pair if each is not None]


def code_prompts(count: int, chars: int) -> list[str]:
    """Pieces of held-out files that begin with a statement of the module, so that they and what they go on with can be parsed.

    Args:
        count: how many.
        chars: length of the longest.

    Raises:
        UsageError: if the files do not yield as many.
    """
    files = held_out_files()
    begins = {file.name: _statements(file.text) for file in files}
    found: list[str] = []
    if count:
        for cut in held_out_prompts(CUTS * count, prefix_chars=chars, continuation_chars=chars, files=files):
            text = _from_a_statement(cut, begins[cut.name])
            if text is not None and len(found) < count:
                found.append(text)
    if len(found) < count:
        raise UsageError(f"the held-out files yield {len(found)} pieces of code of {chars} characters, not {count}; ask for fewer")
    return found


def marks(asked: Sequence[Question], answers: Sequence[tuple[str, bool]], judge: Judge | None) -> Marks:
    """Judge answers.

    Args:
        asked: questions.
        answers: text, and whether it ended by itself.
        judge: of continued code.
    """
    pairs = list(zip(asked, answers, strict=True))
    code = [(question.prompt, text, ended) for question, (text, ended) in pairs if question.problem is None]
    bits = [] if judge is None else [judge.bits_per_byte(prompt, text) for prompt, text, _ in code]
    return Marks(
        tuple(float(question.problem.solved_by(text)) for question, (text, _) in pairs if question.problem is not None),
        tuple(float(continues(prompt, text, ended=ended)) for prompt, text, ended in code),
        tuple(each for each in bits if each is not None),
    )


def _statements(code: str) -> list[int]:
    """Lines, from 1, at which statements of a module begin, with their decorators."""
    return [min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]) for node in ast.parse(code).body]


def _from_a_statement(cut: HeldOutPrompt, begins: Sequence[int]) -> str | None:
    lines = list(io.StringIO(cut.prefix))  # at newlines only; splitlines would also cut at form feeds
    first = cut.line - cut.prefix.count("\n")
    fitting = [line for line in begins if first <= line <= cut.line - LEAST_LINES]
    return "".join(lines[fitting[0] - first :]) if fitting else None

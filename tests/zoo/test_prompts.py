"""Held-out prompts are verbatim, cut at lines, within bounds and reproducible."""

from __future__ import annotations

import pytest

from paceline.core.errors import UsageError
from paceline.zoo.corpus import SourceFile, held_out_files
from paceline.zoo.prompts import held_out_prompts


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    return held_out_files()


def test_prompts_are_verbatim_pieces_of_held_out_files(files: list[SourceFile]) -> None:
    texts = {file.name: file.text for file in files}
    for prompt in held_out_prompts(12, 800, 600, files=files):
        whole = texts[prompt.name]
        assert whole.count("\n", 0, whole.index(prompt.prefix + prompt.continuation) + len(prompt.prefix)) == prompt.line - 1
        assert 0 < len(prompt.prefix) <= 800
        assert 0 < len(prompt.continuation) <= 600
        assert prompt.prefix.endswith("\n")
        assert prompt.continuation.split("\n", 1)[0].strip()


def test_sequence_is_fixed_and_mixes_library_with_tests(files: list[SourceFile]) -> None:
    prompts = held_out_prompts(8, files=files)
    assert prompts == held_out_prompts(8, files=list(reversed(files)))
    assert prompts[:3] == held_out_prompts(3, files=files)
    assert any("test" not in prompt.name for prompt in prompts)


def test_further_rounds_cut_elsewhere() -> None:
    file = SourceFile("module.py", "".join(f"value_{n} = {n}\n" for n in range(400)))
    prompts = held_out_prompts(20, 100, 100, files=[file])
    assert len({prompt.line for prompt in prompts}) == 20


def test_form_feeds_are_not_line_ends() -> None:
    file = SourceFile("module.py", "".join(f"a = {n}\f\nb = {n}\n" for n in range(200)))
    for prompt in held_out_prompts(10, 50, 50, files=[file]):
        assert prompt.prefix.endswith("\n")
        assert prompt.continuation.startswith(("a", "b"))


@pytest.mark.parametrize(("count", "chars"), [(1, 10_000_000), (100_000, 50)])
def test_impossible_wishes_are_refused(files: list[SourceFile], count: int, chars: int) -> None:
    with pytest.raises(UsageError, match="ask for"):
        held_out_prompts(count, chars, chars, files=files[:2])

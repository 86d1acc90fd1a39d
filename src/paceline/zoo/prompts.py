"""Prompts from held-out files, cut at line boundaries, with the true continuation: the real input of demo and benchmarks."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from paceline.core.errors import UsageError
from paceline.zoo.corpus import SourceFile, held_out_files, unit_hash

MAX_CUTS = 64  # cuts tried per file


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """Part of a file that no pocket model has seen.

    Attributes:
        name: file, relative to the standard library.
        line: number of the first line of `continuation`, from 1.
        prefix: whole lines before it; ends with a newline.
        continuation: what the file really says next; starts with a line that is not blank.
    """

    name: str
    line: int
    prefix: str
    continuation: str


def held_out_prompts(
    count: int = 8,
    prefix_chars: int = 1200,
    continuation_chars: int = 1200,
    files: list[SourceFile] | None = None,
    root: Path | None = None,
) -> list[HeldOutPrompt]:
    """The first `count` prompts of a fixed sequence, alternating between library modules and tests.

    Where and in which order files are cut follows from hashes of their names, so the same interpreter always gives the same prompts.
    When every file was cut once, a further round cuts them elsewhere.

    Args:
        prefix_chars: upper bound on the prefix; whole lines only.
        continuation_chars: upper bound on the continuation; whole lines only.
        files: files to cut; the held-out files of `root` when None.

    Raises:
        UsageError: if the files do not yield `count` prompts of that size.
    """
    pool = held_out_files(root) if files is None else files
    needed = prefix_chars + continuation_chars
    long_enough = sorted((file for file in pool if len(file.text) >= needed), key=lambda file: unit_hash(f"order:{file.name}"))
    if count > 0 and not long_enough:
        raise UsageError(f"no held-out file has {needed} characters; ask for shorter prompts")
    tests = [file for file in long_enough if _is_test(file.name)]
    library = [file for file in long_enough if not _is_test(file.name)]
    ordered = [file for file in chain.from_iterable(zip_longest(library, tests)) if file is not None]
    prompts: list[HeldOutPrompt] = []
    taken: set[tuple[str, int]] = set()
    for turn in range(MAX_CUTS):
        for file in ordered:
            if len(prompts) == count:
                return prompts
            prompt = _cut(file, turn, prefix_chars, continuation_chars)
            if prompt is not None and (prompt.name, prompt.line) not in taken:
                taken.add((prompt.name, prompt.line))
                prompts.append(prompt)
    if len(prompts) < count:
        raise UsageError(
            f"the held-out files yield {len(prompts)} prompts of {needed} characters, not {count}; ask for fewer or shorter ones"
        )
    return prompts


def _is_test(name: str) -> bool:
    return any(part in ("test", "tests", "idle_test") or part.startswith("test_") for part in name.split("/"))


def _cut(file: SourceFile, turn: int, prefix_chars: int, continuation_chars: int) -> HeldOutPrompt | None:
    """Cut the file before a non-blank line; None if no such line leaves room for both sides."""
    lines = list(io.StringIO(file.text))  # at newlines only; splitlines would also cut at form feeds
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    room = range(prefix_chars, len(file.text) - continuation_chars + 1)
    places = [i for i, start in enumerate(starts[:-1]) if start in room and lines[i].strip()]
    if not places:
        return None
    cut = places[int(unit_hash(f"cut:{turn}:{file.name}") * len(places))]
    first = next(i for i, start in enumerate(starts) if starts[cut] - start <= prefix_chars)
    last = max(i for i, start in enumerate(starts) if start - starts[cut] <= continuation_chars)
    if first == cut or last == cut:  # a single line longer than the bound
        return None
    return HeldOutPrompt(file.name, cut + 1, "".join(lines[first:cut]), "".join(lines[cut:last]))

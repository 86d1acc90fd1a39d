"""Workloads: prompts made from held-out files and generated text, from easy to impossible to draft, once each or many times."""

from __future__ import annotations

import json
import keyword
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.core.errors import UsageError
from paceline.core.request import GREEDY
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.engine.prompts import Tokenizer

LONG_TOKENS = 1500
RANDOM_TOKENS = 128
REASONING = Sampling(temperature=0.6, top_p=0.95)


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of input.

    Args:
        name: as on the command line.
        description: one line.
        texts: makes prompts as text, given how many; `None` for prompts of random ids.
        sampling: how outputs are chosen.
        tokens: most tokens of a prompt; its end is kept.
        samples: trajectories of every prompt, as best-of-N and voting draw them, each with a seed of its own.
    """

    name: str
    description: str
    texts: Callable[[int], Sequence[str]] | None
    sampling: Sampling = GREEDY
    tokens: int = LONG_TOKENS
    samples: int = 1

    def prompts(self, count: int, tokenizer: Tokenizer | None, vocabulary: int, context: int, seed: int) -> list[tuple[int, ...]]:
        """`count` prompts as token ids.

        Args:
            context: tokens a prompt may have, at most; shorter than `tokens`, it cuts.
            seed: of random ids.

        Raises:
            UsageError: if the workload is text and there is no tokenizer, or nothing fits the context.
        """
        longest = min(self.tokens, context)
        if longest < 1:
            raise UsageError(f"workload {self.name!r}: the model's context leaves no room for a prompt; lower max_tokens")
        if self.texts is None:
            length = min(longest, RANDOM_TOKENS)
            return [tuple(key(seed, index, at) % vocabulary for at in range(length)) for index in range(count)]
        if tokenizer is None:
            raise UsageError(f"workload {self.name!r} is text and this checkpoint has no tokenizer; choose --workloads undraftable")
        return [tuple(tokenizer.encode(text)[-longest:]) for text in self.texts(count)]


def completion_texts(count: int) -> list[str]:
    """Beginnings of held-out files, to be continued."""
    from paceline.zoo.prompts import held_out_prompts

    return [prompt.prefix for prompt in held_out_prompts(count, prefix_chars=1200, continuation_chars=800)]


def long_texts(count: int) -> list[str]:
    """The same with about 1,500 tokens of context."""
    from paceline.zoo.prompts import held_out_prompts

    return [prompt.prefix for prompt in held_out_prompts(count, prefix_chars=4800, continuation_chars=800)]


def edit_texts(count: int) -> list[str]:
    """A piece of a held-out file, a comment asking for a renaming, and the first lines of the renamed piece: the rest is copying."""
    from paceline.zoo.prompts import held_out_prompts

    return [edit_prompt(prompt.prefix) for prompt in held_out_prompts(count, prefix_chars=1400, continuation_chars=400)]


def edit_prompt(original: str, shown: float = 0.3) -> str:
    """Ask for `original` with its most frequent name changed.

    Args:
        shown: share of the edited lines that the prompt already holds.
    """
    old = most_frequent_name(original)
    new = f"{old}_new"
    lines = re.sub(rf"\b{re.escape(old)}\b", new, original).splitlines(keepends=True)
    head = "".join(lines[: max(2, int(shown * len(lines)))])
    return f"# Before\n{original}\n# After: the same code, with {old} renamed to {new}\n{head}"


def most_frequent_name(code: str) -> str:
    """The identifier that occurs most often, the first among equals; keywords and short names do not count."""
    names = [name for name in re.findall(r"\b[A-Za-z_]\w{3,}\b", code) if not keyword.iskeyword(name) and name != "self"]
    return Counter(names).most_common(1)[0][0] if names else "value"


def structured_texts(count: int) -> list[str]:
    """Tables and records with a running number, of several shapes."""
    return [SHAPES[index % len(SHAPES)](14 + index) for index in range(count)]


def _table(rows: int) -> str:
    entries = "".join(f'    {1000 + row}: ("E{1000 + row}", "error number {row}", {row % 4}),\n' for row in range(rows))
    return f"ERRORS = {{\n{entries}"


def _enumeration(rows: int) -> str:
    colours = ("RED", "GREEN", "BLUE", "BLACK")
    entries = "".join(f"    {colours[row % 4]}_{row} = {row}\n" for row in range(rows))
    return f"class Colour(enum.IntEnum):\n{entries}"


def _records(rows: int) -> str:
    entries = ",\n".join(
        "    " + json.dumps({"id": row, "name": f"user{row}", "active": row % 2 == 0, "groups": ["staff", "users"]}) for row in range(rows)
    )
    return f"[\n{entries},\n"


def _assertions(rows: int) -> str:
    entries = "".join(f"        self.assertEqual(parse('{row}'), {row})\n" for row in range(rows))
    return f"class TestParse(unittest.TestCase):\n    def test_numbers(self):\n{entries}"


SHAPES = (_table, _enumeration, _records, _assertions)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("completion", "held-out Python files, continued", completion_texts),
        Workload("sampled", "held-out Python files, continued at temperature 0.8", completion_texts, Sampling(temperature=0.8, top_p=0.95)),
        Workload("edit", "a held-out piece repeated with one name changed", edit_texts),
        Workload("structured", "tables, enumerations, records, assertions", structured_texts),
        Workload("long", "completion behind about 1,500 tokens", long_texts),
        # Greedy output of a small model soon repeats itself whatever the prompt; only sampling at a high temperature cannot be drafted.
        Workload("undraftable", "random ids continued at temperature 1.5", None, Sampling(temperature=1.5)),
        *(Workload(f"best-of-{n}", f"{n} samples of each held-out file", completion_texts, REASONING, samples=n) for n in (4, 8, 16)),
        Workload("best-of-8-structured", "8 samples of tables and records", structured_texts, REASONING, samples=8),
    )
}
USUAL = ("completion", "sampled", "edit", "structured", "long", "undraftable", "best-of-8")


def find_workloads(names: Sequence[str] | None) -> list[Workload]:
    """The workloads called `names`, those of `USUAL` by default.

    Raises:
        UsageError: for an unknown name, listing the known ones.
    """
    for name in names or ():
        if name not in WORKLOADS:
            raise UsageError(f"unknown workload {name!r}; known: {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in names or USUAL]

"""Training pairs of the editing task: spans of source files, and the same spans damaged.

A batch is a pure function of (seed, step, longest target), so resuming needs no data-loader state. Examples are made in pools and sorted
by length within one, so that a batch holds little padding.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from paceline.core.errors import UsageError
from paceline.zoo.corruption import corrupt
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL = 16  # batches per pool
MAX_LINES = 8
LINE_CHARACTERS = 160  # spans with a longer line are data, not text


@dataclass(frozen=True, slots=True)
class Pair:
    """One example: damaged source and the original.

    Attributes:
        source, target: token ids without end-of-text.
        rate: share of words and marks that were hit.
    """

    source: list[int]
    target: list[int]
    rate: float
    source_text: str
    target_text: str


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Padded rows. Targets end with end-of-text; both are filled up with the padding id."""

    source: Int[Tensor, "rows source"]
    target: Int[Tensor, "rows target"]

    @property
    def tokens(self) -> int:
        """Target tokens, padding not counted."""
        return int((self.target != PAD_ID).sum())

    def to(self, device: torch.device) -> PairBatch:
        """The same rows on `device`."""
        return PairBatch(self.source.to(device), self.target.to(device))


@dataclass(slots=True)
class EditPairs:
    """An endless seeded stream of pairs.

    Args:
        texts: files that spans are cut from.
        tokenizer: shared by source and target.
        seed: decides every span and every slip.
        rates: lowest and highest slip rate; each pair has one drawn uniformly between them.
    """

    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    seed: int
    rates: tuple[float, float] = (0.01, 0.15)
    _lines: list[list[str]] = field(init=False)
    _starts: list[int] = field(init=False)
    _cached: tuple[tuple[int, int], list[PairBatch]] = field(default=((-1, -1), []), init=False)

    def __post_init__(self) -> None:
        # At newlines only: splitlines would also cut at form feeds.
        self._lines = [lines for lines in (list(io.StringIO(text)) for text in self.texts) if lines]
        if not self._lines:
            raise UsageError("the editing task needs at least one file with text")
        self._starts = list(accumulate((len(lines) for lines in self._lines), initial=0))

    @property
    def lines(self) -> int:
        """Lines that spans may begin at."""
        return self._starts[-1]

    def batch(self, step: int, rows: int, longest: int) -> PairBatch:
        """The batch of a step, whose targets have at most `longest` tokens, end-of-text included."""
        pool, place = divmod(step, POOL)
        if self._cached[0] != (pool, longest):
            self._cached = ((pool, longest), self._pool(pool, rows, longest))
        return self._cached[1][place]

    def pairs(self, key: str, count: int, longest: int) -> list[Pair]:
        """`count` pairs that depend on the seed and `key` alone, in the order they were drawn."""
        random = Random(f"{self.seed}:{key}")
        found: list[Pair] = []
        while len(found) < count:
            found.extend(self._draw(random, count - len(found), longest))
        return found

    def _pool(self, pool: int, rows: int, longest: int) -> list[PairBatch]:
        ordered = sorted(self.pairs(f"pool:{pool}", POOL * rows, longest), key=lambda pair: len(pair.target))
        batches = [padded(ordered[start : start + rows]) for start in range(0, len(ordered), rows)]
        Random(f"{self.seed}:order:{pool}").shuffle(batches)
        return batches

    def _draw(self, random: Random, count: int, longest: int) -> Iterator[Pair]:
        """Up to `count` pairs; spans that turn out too long are left out."""
        targets, damages = [], []
        for _ in range(count):
            lines, start = self._place(random)
            span = "".join(lines[start : start + random.randint(1, MAX_LINES)])
            # About three characters a token: most spans that pass fit, and a short limit still sees whole short lines.
            while len(span) > 3 * longest and "\n" in span[:-1]:
                span = span[: span.rindex("\n", 0, -1) + 1]
            target = span.rstrip()
            if not target.strip() or max(map(len, target.split("\n"))) > LINE_CHARACTERS:
                continue
            spare = [word for line in lines[max(0, start - 20) : start + 20] for word in line.split() if word.isidentifier()]
            targets.append(target)
            damages.append(corrupt(target, random.uniform(*self.rates), random, spare or ("self",)))
        encoded = self._encode([*targets, *(damage.text for damage in damages)])
        for target, damage, wanted, given in zip(targets, damages, encoded, encoded[len(targets) :], strict=False):
            if len(wanted) < longest and 0 < len(given) <= max_source(longest):
                yield Pair(given, wanted, damage.rate, damage.text, target)

    def _place(self, random: Random) -> tuple[list[str], int]:
        """A file and a line of it, every line of the corpus being equally likely."""
        at = random.randrange(self._starts[-1])
        file = bisect_right(self._starts, at) - 1
        return self._lines[file], at - self._starts[file]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def max_source(longest: int) -> int:
    """Longest source for targets of `longest` tokens: a slip splits a word into several tokens."""
    return longest + longest // 2


def padded(pairs: Sequence[Pair]) -> PairBatch:
    """Pairs as one batch."""
    return PairBatch(pad_rows([pair.source for pair in pairs]), pad_rows([[*pair.target, END_OF_TEXT_ID] for pair in pairs]))


def pad_rows(rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows longest"]:
    """Rows of ids, filled up on the right with the padding id."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD_ID] * (longest - len(row))] for row in rows])

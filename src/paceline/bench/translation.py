"""A translation task of 64 symbols whose references disagree: every window of three may stand in one of several orders.

A sentence is translated symbol by symbol with a fixed table, and each window of three is put into one of `ORDERS` at random. All of them
are right, but a drafter that fills slots independently learns the majority of each slot, and majorities of different orders make no order:
of (a, b, c) the first slot says b, and so does the second. A model that writes one token after another knows how a window began. That is
why a drafter must be trained on such a model's outputs instead of the references (Ge et al. 2022, arXiv 2205.10350, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from paceline.zoo.pairs import Pair, PairBatch, padded
from paceline.zoo.tokenizer import SPECIALS

SYMBOLS = 64
FIRST = len(SPECIALS)  # id of the first symbol
VOCABULARY = FIRST + SYMBOLS
WINDOW = 3
ORDERS, ODDS = ((0, 1, 2), (1, 0, 2), (1, 2, 0)), (0.40, 0.36, 0.24)
SHORTEST, LONGEST = 10, 30  # symbols of a sentence


@dataclass
class Translations:
    """Sentences with one of their translations each; a `zoo.edit_course.PairStream`.

    Args:
        seed: of the table and of all sentences.
        count: training pairs.
    """

    seed: int = 0
    count: int = 20_000
    _shuffled: tuple[int, list[int]] = field(default=(-1, []), init=False)

    @property
    def lines(self) -> int:
        """Training pairs."""
        return self.count

    @cached_property
    def table(self) -> list[int]:
        """What every symbol becomes: a permutation of all of them."""
        symbols = list(range(FIRST, VOCABULARY))
        Random(f"{self.seed}:table").shuffle(symbols)
        return symbols

    @cached_property
    def training(self) -> list[Pair]:
        """The training set."""
        return self.pairs("train", self.count)

    def pairs(self, key: str, count: int) -> list[Pair]:
        """Pairs that depend on the seed and `key` alone."""
        random = Random(f"{self.seed}:{key}")
        return [self._draw(random) for _ in range(count)]

    def batch(self, step: int, rows: int, longest: int) -> PairBatch:
        """Every training pair once per epoch, in another order each time; all are short enough for any `longest` above `LONGEST`."""
        batches = max(1, self.count // rows)
        epoch, at = divmod(step, batches)
        if self._shuffled[0] != epoch:
            order = list(range(self.count))
            Random(f"{self.seed}:{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return padded([self.training[index] for index in self._shuffled[1][at * rows : (at + 1) * rows]])

    def is_right(self, source: Sequence[int], output: Sequence[int] | None) -> bool:
        """Whether an output is a translation: every whole window in one of the orders, what is left of a sentence in the first."""
        if output is None or len(output) != len(source):
            return False
        plain = [self.table[token - FIRST] for token in source]
        starts = range(0, len(plain), WINDOW)
        return all(list(output[at : at + WINDOW]) in _orders(plain[at : at + WINDOW]) for at in starts)

    def _draw(self, random: Random) -> Pair:
        source = [random.randrange(FIRST, VOCABULARY) for _ in range(random.randint(SHORTEST, LONGEST))]
        plain = [self.table[token - FIRST] for token in source]
        target: list[int] = []
        for at in range(0, len(plain), WINDOW):
            orders = _orders(plain[at : at + WINDOW])
            target += random.choices(orders, ODDS[: len(orders)])[0]
        return Pair(source, target, 0.0, "", "")


def _orders(window: list[int]) -> list[list[int]]:
    """The translations of a window."""
    return [[window[place] for place in order] for order in ORDERS] if len(window) == WINDOW else [window]

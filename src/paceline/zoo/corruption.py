"""Seeded damage to text: the typing slips that an editing model learns to undo.

A slip hits a word or a punctuation mark with a given probability and drops, replaces, inserts, doubles or transposes a character of it,
or the whole of it. Spaces and newlines are never touched by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

PIECES = re.compile(r"\w+|[^\w\s]|\s+")
LETTERS = "etaoinsrhldcumfpgwybvkxjqz_"  # what a slipping finger types
SWAP = 0.1  # share of slips that exchange a piece with the next one


@dataclass(frozen=True, slots=True)
class Damaged:
    """A corrupted text.

    Attributes:
        slips: words and marks that were hit.
        pieces: words and marks there were.
    """

    text: str
    slips: int
    pieces: int

    @property
    def rate(self) -> float:
        """Share of words and marks that were hit."""
        return self.slips / max(1, self.pieces)


def corrupt(text: str, rate: float, random: Random, spare: Sequence[str] = ("self", "the", "is")) -> Damaged:
    """Hit every word and punctuation mark of `text` with probability `rate`.

    Args:
        rate: 0 (no damage) to 1.
        random: source of every choice; the same state gives the same damage.
        spare: words that replacements and insertions are taken from.
    """
    pieces = PIECES.findall(text)
    marks = [index for index, piece in enumerate(pieces) if not piece.isspace()]
    slips = 0
    for order, index in enumerate(marks):
        if random.random() >= rate:
            continue
        slips += 1
        if random.random() < SWAP and order + 1 < len(marks):
            following = marks[order + 1]
            pieces[index], pieces[following] = pieces[following], pieces[index]
            continue
        by_letter = len(pieces[index]) > 1 and random.random() < 0.5
        pieces[index] = random.choice(_LETTER_SLIPS if by_letter else _PIECE_SLIPS)(pieces[index], random, spare)
    return Damaged("".join(pieces), slips, len(marks))


Slip = Callable[[str, Random, Sequence[str]], str]


def _drop_letter(piece: str, random: Random, spare: Sequence[str]) -> str:
    at = random.randrange(len(piece))
    return piece[:at] + piece[at + 1 :]


def _double_letter(piece: str, random: Random, spare: Sequence[str]) -> str:
    at = random.randrange(len(piece))
    return piece[: at + 1] + piece[at:]


def _insert_letter(piece: str, random: Random, spare: Sequence[str]) -> str:
    at = random.randrange(len(piece) + 1)
    return piece[:at] + random.choice(LETTERS) + piece[at:]


def _replace_letter(piece: str, random: Random, spare: Sequence[str]) -> str:
    at = random.randrange(len(piece))
    return piece[:at] + random.choice(LETTERS) + piece[at + 1 :]


def _transpose(piece: str, random: Random, spare: Sequence[str]) -> str:
    at = random.randrange(len(piece) - 1)
    return piece[:at] + piece[at + 1] + piece[at] + piece[at + 2 :]


def _drop(piece: str, random: Random, spare: Sequence[str]) -> str:
    return ""


def _double(piece: str, random: Random, spare: Sequence[str]) -> str:
    return f"{piece} {piece}" if piece.isidentifier() else piece + piece


def _insert(piece: str, random: Random, spare: Sequence[str]) -> str:
    return f"{piece} {random.choice(spare)}"


def _replace(piece: str, random: Random, spare: Sequence[str]) -> str:
    return random.choice(spare)


_LETTER_SLIPS: tuple[Slip, ...] = (_drop_letter, _double_letter, _insert_letter, _replace_letter, _transpose)
_PIECE_SLIPS: tuple[Slip, ...] = (_drop, _double, _insert, _replace)

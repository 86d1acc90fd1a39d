"""Emission: the one place where judged tokens become output and where EOS, stop strings and limits cut, once."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.verdict import TokenLogprob, Verdict


class Detokenizer(Protocol):
    """The part of a tokenizer that output needs."""

    def decode(self, ids: Many[int], /) -> str:
        """Text of the ids, special tokens left out."""


@dataclass(frozen=True, slots=True)
class Emission:
    """Tokens of one sequence that became output in one step.

    Args:
        sequence: whose.
        tokens: ids, the last of which the target chose itself; those before it were drafted and accepted.
        drafted: how many of `tokens` came from the draft.
        text: newly settled text (empty without a tokenizer, or while a character or stop string is incomplete).
        logprobs: of the tokens, if requested.
        filled: denoising: (index in the output, token) of every position that this step decided, output or not yet.
    """

    sequence: Sequence
    tokens: tuple[int, ...]
    drafted: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    filled: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class TextStream:
    """Text of a growing list of ids, released only where later tokens cannot change it.

    Byte-level tokens may split a character, and merges may change spacing at a border, so each increment is decoded together with
    the one before it. Text that might be the beginning of a stop string is held back.
    """

    detokenizer: Detokenizer
    stop: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    released: int = 0
    stopped: bool = False
    _anchor: int = 0  # first id of the window that is decoded again
    _read: int = 0  # ids whose text is in `text`

    def push(self, token: int) -> bool:
        """Add a token; returns whether a stop string is now complete (`text` is cut before it)."""
        self.ids.append(token)
        before = self.detokenizer.decode(self.ids[self._anchor : self._read])
        after = self.detokenizer.decode(self.ids[self._anchor :])
        if after.endswith("\ufffd") and len(self.ids) - self._read < 8:
            return False  # an incomplete character
        old = len(self.text)
        self.text += after[len(before) :]
        self._anchor, self._read = self._read, len(self.ids)
        longest = max((len(stop) for stop in self.stop), default=0)
        window = max(0, old - longest + 1)
        found = [at for at in (self.text.find(stop, window) for stop in self.stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        return self.stopped

    def settled(self, final: bool = False) -> str:
        """Text not released before that can no longer change; everything left if `final`."""
        end = len(self.text)
        if final and not self.stopped:
            self.text += self.detokenizer.decode(self.ids[self._anchor :])[
                len(self.detokenizer.decode(self.ids[self._anchor : self._read])) :
            ]
            self._read = len(self.ids)
            end = len(self.text)
        elif not self.stopped:
            held = (n for stop in self.stop for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n]))
            end -= max(held, default=0)
        new = self.text[self.released : end]
        self.released = max(self.released, end)
        return new


def ends(request: Request, eos: frozenset[int]) -> frozenset[int]:
    """Ids that end the output of a request; the one that does is part of its ids, not of its text."""
    return request.stop_ids if request.ignore_eos else request.stop_ids | eos


def cut(
    sequence: Sequence, verdict: Verdict, eos: frozenset[int], context: int, stream: TextStream | None
) -> tuple[tuple[int, ...], FinishReason | None]:
    """How many of a verdict's tokens become output, and whether the sequence ends with them.

    EOS, stop ids and the token that completes a stop string are the last ids of the output.

    Args:
        eos: ids that end output of this model.
        context: most tokens a sequence may hold.
        stream: decoded text of this sequence, when stop strings or streaming need it; the emitted tokens are pushed.
    """
    request = sequence.request
    last = ends(request, eos)
    room = min(sequence.remaining, context - len(sequence.tokens))
    for count, token in enumerate(verdict.tokens[:room], start=1):
        if token in last:
            return verdict.tokens[:count], FinishReason.STOP
        if stream is not None and stream.push(token):
            return verdict.tokens[:count], FinishReason.STOP
        if count == room:
            return verdict.tokens[:count], FinishReason.LENGTH
    return verdict.tokens, None

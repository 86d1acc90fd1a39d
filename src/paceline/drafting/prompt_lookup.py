"""Prompt lookup: what followed the last n-gram where it occurred before in this context (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits

FEW = 16  # tokens that are indexed one by one


@dataclass(frozen=True, slots=True)
class PromptLookupConfig:
    """Options of prompt lookup.

    Args:
        length: most tokens copied.
        max_ngram, min_ngram: sizes of the suffix that is looked up, longest first.
    """

    length: int = 10
    max_ngram: int = 4
    min_ngram: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise UsageError(f"prompt-lookup needs 1 <= min_ngram <= max_ngram, got {self.min_ngram} and {self.max_ngram}")
        if self.length < 0:
            raise UsageError(f"prompt-lookup: length={self.length} must be >= 0")


@dataclass(slots=True)
class NgramIndex:
    """For every n-gram of one context, where its latest occurrence ended. Grows with the context; each token is indexed once."""

    sizes: range
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0

    def extend(self, tokens: list[int]) -> None:
        """Index n-grams that end before the last token, so that a lookup never finds the suffix it asks for."""
        last = len(tokens) - 1
        if last - self.indexed <= FEW:
            ends = self.ends
            for end in range(self.indexed + 1, last + 1):
                for size in self.sizes:
                    if size <= end:
                        ends[tuple(tokens[end - size : end])] = end
            self.indexed = max(self.indexed, last)
            return
        for size in self.sizes:
            first = max(self.indexed + 1, size)
            if first > last:
                continue
            columns = (tokens[first - size + at : last - size + at + 1] for at in range(size))
            self.ends.update(zip(zip(*columns, strict=True), range(first, last + 1), strict=True))  # all at once: prompts are long
        self.indexed = max(self.indexed, last)

    def continuation(self, tokens: list[int], length: int) -> tuple[list[int], int]:
        """What followed the longest known suffix, and that suffix's size (0: none found).

        An occurrence close to the end has a short continuation; the text is then taken to repeat with that period.
        """
        for size in reversed(self.sizes):
            end = self.ends.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if end is not None:
                period = len(tokens) - end
                if period >= length:
                    return tokens[end : end + length], size
                return [tokens[end + at % period] for at in range(length)], size
        return [], 0


class PromptLookup:
    """Copies a chain from earlier in the context; deterministic, so any sampling stays exact."""

    Config = PromptLookupConfig
    taps: TapRequest = NO_TAPS

    def __init__(self, config: PromptLookupConfig) -> None:
        self.config = config
        self._index: dict[int, NgramIndex] = {}

    @classmethod
    def build(cls, config: PromptLookupConfig, context: DraftContext) -> PromptLookup:
        """A drafter for this context; needs nothing from it."""
        return cls(config)

    def lookup(self, sequence: Sequence, length: int) -> tuple[list[int], int]:
        """The copied continuation of a sequence and the size of the n-gram it rests on."""
        index = self._index.get(sequence.uid)
        if index is None:
            index = self._index[sequence.uid] = NgramIndex(range(self.config.min_ngram, self.config.max_ngram + 1))
        history = sequence.history  # in an encoder-decoder, what there is to copy from is the source
        index.extend(history)
        return index.continuation(history, length)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """A chain of at most `length` copied tokens each."""
        trees = []
        for sequence, limit in zip(sequences, limits, strict=True):
            length = min(self.config.length, limit.nodes, limit.depth)
            draft = self.lookup(sequence, length)[0] if length > 0 else []
            trees.append(TokenTree.chain(sequence.tokens[-1], draft))
        return trees

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """The index reads the context when it is next asked."""

    def release(self, sequence: Sequence) -> None:
        self._index.pop(sequence.uid, None)

    def memory_bytes(self) -> int:
        """An estimate: one dictionary entry is about 100 bytes."""
        return 100 * sum(len(index.ends) for index in self._index.values())

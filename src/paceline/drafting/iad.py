"""Input-guided aggressive decoding: what is left of the source is the draft (Ge et al. 2022, arXiv 2205.10350, sec. 3).

An editor mostly copies its input. The whole source is drafted first; after a difference, the last tokens written are looked up in the
source, and where they stand exactly once, copying goes on behind them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits

UNMAPPED = -1  # in place of a source token that the target's vocabulary lacks; equal to no token
SEVERAL = -1  # in place of an end position where an n-gram occurs more than once
WHOLE = 1024  # most nodes of a draft without a limit of its own: the longest source that supported encoders were trained on
BYTES_PER_ENTRY = 100  # of an index, about


@dataclass(frozen=True, slots=True)
class IADConfig:
    """Options of input-guided aggressive decoding.

    Args:
        min_gram, max_gram: sizes of the suffix that is looked up in the source, shortest first, until one occurs exactly once.
        max_len: output length from which on nothing is drafted. `None` drafts to the end of the output, which `max_tokens` limits.
        max_draft: most tokens drafted at once, so that a long source does not cost its whole length after every difference. `None`
            drafts all that is left.
    """

    min_gram: int = 1
    max_gram: int = 3
    max_len: int | None = None
    max_draft: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_gram <= self.max_gram:
            raise UsageError(f"iad needs 1 <= min_gram <= max_gram, got {self.min_gram} and {self.max_gram}")
        for name, value in (("max_len", self.max_len), ("max_draft", self.max_draft)):
            if value is not None and value < 1:
                raise UsageError(f"iad: {name}={value} must be at least 1")

    @property
    def most_draft(self) -> int:
        """Most nodes it will ever draft."""
        return WHOLE if self.max_draft is None else self.max_draft


@dataclass(slots=True)
class SourceIndex:
    """Where every n-gram of a source ends, if it occurs only once.

    Args:
        source: token ids of the target's vocabulary, without EOS; `UNMAPPED` where it has none.
        sizes: of the n-grams.
    """

    source: tuple[int, ...]
    sizes: range
    ends: dict[tuple[int, ...], int] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = {}
        for size in self.sizes:
            for end in range(size, len(self.source) + 1):
                gram = self.source[end - size : end]
                self.ends[gram] = SEVERAL if gram in self.ends else end

    def resume(self, written: Many[int]) -> int | None:
        """Position of the source right behind what was written last; `None` if that is unknown or stands there several times."""
        for size in self.sizes:
            if len(written) < size:
                return None
            end = self.ends.get(tuple(written[len(written) - size :]))
            if end is None:
                return None  # a longer suffix ends in this one and is unknown as well
            if end != SEVERAL:
                return end
        return None

    def rest(self, start: int, most: int) -> tuple[int, ...]:
        """At most `most` tokens of the source from `start` on, up to the first one that the target's vocabulary lacks."""
        found = self.source[start : start + max(0, most)]
        return found[: found.index(UNMAPPED)] if UNMAPPED in found else found


class IAD:
    """Drafts a chain copied from the source; deterministic, so any sampling stays exact.

    The source is what an encoder-decoder reads. In a decoder-only model it is the prompt; nothing is drafted there before the first token,
    since an answer rarely begins with all of its prompt.

    Args:
        config: options.
        eos: ids that end a source, and are no part of it.
        mapping: target id of a source id, where the two have vocabularies of their own.
        disabled: draft nothing: hardly any token of a source could be copied.
    """

    Config = IADConfig
    taps: TapRequest = NO_TAPS

    def __init__(
        self, config: IADConfig, eos: frozenset[int] = frozenset(), mapping: Mapping[int, int] | None = None, disabled: bool = False
    ) -> None:
        self.config, self.eos, self.mapping, self.disabled = config, eos, mapping, disabled
        self._indices: dict[int, SourceIndex] = {}

    @classmethod
    def build(cls, config: IADConfig, context: DraftContext) -> IAD:
        """A drafter for this context. Where fewer than half of the source's pieces are in the target's vocabulary, it warns and is off."""
        if context.vocabularies is None:
            return cls(config, context.eos)
        source, target = context.vocabularies
        mapping = {token: target[piece] for piece, token in source.items() if piece in target}
        disabled = 2 * len(mapping) < len(source) or not mapping
        if disabled:
            warnings.warn(
                f"iad is off: only {len(mapping)} of the {len(source)} pieces of the source vocabulary are in the target's", stacklevel=2
            )
        return cls(config, context.eos, mapping, disabled)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """What is left of each source, as far as it is known where that is."""
        return [
            TokenTree.chain(sequence.tokens[-1], self.draft(sequence, limit)) for sequence, limit in zip(sequences, limits, strict=True)
        ]

    def draft(self, sequence: Sequence, limit: DraftLimits) -> tuple[int, ...]:
        """The tokens to try next."""
        written = len(sequence.tokens) - sequence.prompt_length
        most = min(bound for bound in (limit.nodes, limit.depth, self.config.max_draft, self._left(written)) if bound is not None)
        if most <= 0 or self.disabled:
            return ()
        index = self._index(sequence)
        start = index.resume(sequence.tokens[-min(written, self.config.max_gram) :]) if written else self._first(sequence, index)
        return () if start is None else index.rest(start, most)

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """The source is all there is to know."""

    def release(self, sequence: Sequence) -> None:
        self._indices.pop(sequence.uid, None)

    def memory_bytes(self) -> int:
        """An estimate."""
        return BYTES_PER_ENTRY * sum(len(index.ends) for index in self._indices.values())

    def _left(self, written: int) -> int | None:
        """Tokens that may still be drafted; the target adds one of its own to every draft."""
        return None if self.config.max_len is None else self.config.max_len - written - 1

    def _index(self, sequence: Sequence) -> SourceIndex:
        index = self._indices.get(sequence.uid)
        if index is None:
            source = _without(sequence.request.prompt, self.eos) if self.mapping is None else self._mapped(sequence.request.prompt)
            index = self._indices[sequence.uid] = SourceIndex(source, range(self.config.min_gram, self.config.max_gram + 1))
        return index

    def _mapped(self, source: Iterable[int]) -> tuple[int, ...]:
        """A source in ids of the target's vocabulary."""
        mapping = self.mapping or {}
        return _without([mapping.get(token, UNMAPPED) for token in source], self.eos)

    def _first(self, sequence: Sequence, index: SourceIndex) -> int | None:
        """Where the first draft begins: at the start of the source, behind a BOS that the target begins with as well."""
        if not sequence.request.source:
            return None
        return int(index.source[:1] == (sequence.tokens[-1],))


def _without(source: Many[int], eos: frozenset[int]) -> tuple[int, ...]:
    """A source without the EOS ids at its end."""
    end = len(source)
    while end and source[end - 1] in eos:
        end -= 1
    return tuple(source[:end])

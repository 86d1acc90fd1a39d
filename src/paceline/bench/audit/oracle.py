"""A drafter that knows the answer and errs on purpose: its drafts are accepted to every length, rejected, and have siblings.

What a real method exercises depends on how well it guesses; this one visits every branch of the loop on any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.rng import key
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftLimits

Answers = Mapping[tuple[int, ...], Many[int]]


@dataclass(frozen=True, slots=True)
class OracleDrafter:
    """Drafts the known continuation of known prompts with planned mistakes.

    Args:
        answers: the output of plain decoding by prompt; a prompt that is not in it gets empty drafts.
        vocabulary: wrong tokens are drawn from it.
        length: depth of the draft.
        mistakes: share of positions drafted wrongly.
        branches: hang a two-token wrong branch before every right token, so that accepted nodes are never adjacent.
        seed: which positions are wrong.
    """

    answers: Answers
    vocabulary: int
    length: int = 5
    mistakes: float = 0.2
    branches: bool = False
    seed: int = 0

    @property
    def taps(self) -> TapRequest:
        """Nothing."""
        return NO_TAPS

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """The next tokens of the answer, some of them wrong."""
        return [self._tree(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def _tree(self, sequence: Sequence, limit: DraftLimits) -> TokenTree:
        done = len(sequence.tokens) - sequence.prompt_length
        length = min(self.length, limit.depth, limit.nodes // 3 if self.branches else limit.nodes)
        right = list(self.answers.get(sequence.request.prompt, ()))[done : done + length]
        if not right:
            return TokenTree.chain(sequence.tokens[-1])
        draft = [self._wrong(token, 1) if self._errs(done + at) else token for at, token in enumerate(right)]
        if not self.branches:
            return TokenTree.chain(sequence.tokens[-1], draft)
        paths: list[list[int]] = []
        for at, token in enumerate(draft):
            decoy = self._wrong(token, 2)
            paths.append([*draft[:at], decoy, *([token] if at + 1 < length else [])])
            paths.append(draft[: at + 1])
        return TokenTree.from_paths(sequence.tokens[-1], paths)

    def _errs(self, position: int) -> bool:
        return key(self.seed, position) % 1000 < 1000 * self.mistakes

    def _wrong(self, token: int, step: int) -> int:
        return (token + step) % self.vocabulary

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """It knows already."""

    def release(self, sequence: Sequence) -> None:
        """It remembers nothing."""

    def memory_bytes(self) -> int:
        """Zero."""
        return 0

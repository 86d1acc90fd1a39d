"""Verifiers that keep less than the target accepted: rollback to the shortest acceptance of the batch, and the reference's lost bonus.

What is cut off was right; it is decided again in a later step. A cut never looks at the tokens of the part it removes, only at how many
the batch (or the draft) has, so the tokens that stay follow the same law.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from paceline.core.request import Sequence
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.verification.verifier import Verifier


class CutVerifier(Verifier):
    """Judges as usual, then cuts.

    Args:
        coupled: as for `Verifier`.
        common: cut every sequence of a step to the fewest tokens that one of them got (`rollback`).
        bonus: keep the target's own token behind a draft accepted to its end.
    """

    def __init__(self, coupled: bool = False, *, common: bool = False, bonus: bool = True) -> None:
        super().__init__(coupled=coupled)
        self.common, self.bonus = common, bonus

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        """See `Verifier.judge`."""
        verdicts = super().judge(sequences, trees, logits)
        if not self.bonus:
            verdicts = [_without_bonus(tree, verdict) for tree, verdict in zip(trees, verdicts, strict=True)]
        if self.common:
            fewest = min(len(verdict.tokens) for verdict in verdicts)
            verdicts = [shortened(verdict, fewest) for verdict in verdicts]
        return verdicts


def shortened(verdict: Verdict, tokens: int) -> Verdict:
    """The first `tokens` tokens of a verdict; the last of them becomes pending, accepted or not."""
    if tokens >= len(verdict.tokens):
        return verdict
    return replace(verdict, accepted=verdict.accepted[: tokens - 1], tokens=verdict.tokens[:tokens], logprobs=verdict.logprobs[:tokens])


def _without_bonus(tree: TokenTree, verdict: Verdict) -> Verdict:
    last = verdict.accepted[-1] if verdict.accepted else ROOT
    return shortened(verdict, len(verdict.accepted)) if verdict.accepted and last not in tree.parent else verdict

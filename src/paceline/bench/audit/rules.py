"""The rule at one node, as pure functions: the engine's own, a textbook version written down independently, and faulty ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.tree import Distribution
from paceline.verification import rejection

Law = Float[Tensor, " vocabulary"]


class NodeRule(Protocol):
    """Where a node stands after some of its children were rejected."""

    def offer(self, token: int) -> float:
        """Probability of accepting the next child; one or more is certain."""

    def rejected(self, token: int) -> NodeRule:
        """After that child was rejected."""

    def law(self) -> Law:
        """What the emitted token is drawn from when no child is left."""


class Opening(Protocol):
    """Makes the rule of a node: target law, the draft's law (`None` for chosen children), whether draws were with replacement."""

    def __call__(self, target: Law, draft: Law | None, replacement: bool) -> NodeRule:
        """Before any child was judged."""


@dataclass(frozen=True, slots=True)
class EngineRule:
    """The rule that the engine's verifier walks with."""

    odds: rejection.Opening | rejection.Odds

    @classmethod
    def open(cls, target: Law, draft: Law | None, replacement: bool) -> EngineRule:
        """See `Opening`."""
        return cls(rejection.Opening((target,), (None if draft is None else Distribution(draft),), (replacement,)))

    def offer(self, token: int) -> float:
        return self.odds.offer([token])[0]

    def rejected(self, token: int) -> EngineRule:
        return EngineRule(self.odds.rejected([token]))

    def law(self) -> Law:
        return self.odds.law(0) / self.odds.law(0).sum()


@dataclass(frozen=True, slots=True)
class TextbookRule:
    """Recursive rejection as printed: accept with min(1, R/D); else R becomes the positive part of R - D, and D loses the token.

    Args:
        residual, draft: R and D; `draft` is `None` for chosen children, whose D is a point mass.
        replacement: D stays as it is.
    """

    residual: Law
    draft: Law | None
    replacement: bool

    @classmethod
    def open(cls, target: Law, draft: Law | None, replacement: bool) -> TextbookRule:
        """See `Opening`."""
        return cls(target, draft, replacement)

    def offer(self, token: int) -> float:
        return float(self.residual[token] if self.draft is None else self.residual[token] / self.draft[token])

    def rejected(self, token: int) -> TextbookRule:
        drafted = torch.zeros_like(self.residual) if self.draft is None else self.draft
        remaining = (self.residual - drafted).clamp(min=0.0)
        remaining[token] = 0.0
        mass = remaining.sum()
        residual = remaining / mass if mass > 0 else self.residual
        return replace(self, residual=residual, draft=self.draft if self.replacement else _without(self.draft, token))

    def law(self) -> Law:
        return self.residual


@dataclass(frozen=True, slots=True)
class ResidualLeftOut(TextbookRule):
    """Fault: after a rejection the target's own law stays, instead of what the draft left of it."""

    def rejected(self, token: int) -> TextbookRule:
        return replace(self, draft=self.draft if self.replacement else _without(self.draft, token))


@dataclass(frozen=True, slots=True)
class DraftNotZeroed(TextbookRule):
    """Fault: children drawn without replacement are judged as if drawn with it."""

    def rejected(self, token: int) -> TextbookRule:
        return replace(TextbookRule.rejected(self, token), draft=self.draft)


@dataclass(frozen=True, slots=True)
class BonusFromDraft(TextbookRule):
    """Fault: where there are no children to judge, the token comes from the draft's law."""

    def law(self) -> Law:
        return self.residual if self.draft is None else self.draft


def _without(draft: Law | None, token: int) -> Law | None:
    """The law of the next draw; all zero when nothing is left."""
    if draft is None:
        return None
    left = draft.clone()
    left[token] = 0.0
    mass = left.sum()
    return left / mass if mass > 0 else left

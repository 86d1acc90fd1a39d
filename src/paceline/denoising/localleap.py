"""LocalLeap: near positions that are very sure, moderately sure ones are decided as well (Local Determinism Propagation)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

from paceline.core.errors import UsageError
from paceline.denoising.base import DenoiseContext, DenoisingConfig, assemble
from paceline.denoising.canvas import Canvas, Flags, Floats, Ints
from paceline.denoising.denoiser import Denoiser
from paceline.denoising.guesses import Guesses
from paceline.denoising.rules import Scope


@dataclass(frozen=True, slots=True)
class LocalLeapConfig(DenoisingConfig):
    """Options of LocalLeap, and those of every denoising method.

    Args:
        threshold: probability that makes an open position an anchor; above 1 there are none, and one token is decided per step.
        relaxed: probability that is enough near an anchor; at most `threshold`.
        radius: positions up to this far from an anchor are near it; 0 is threshold decoding.
        decay: let the relaxed threshold rise linearly with the distance, from `relaxed` next to an anchor towards `threshold` (not in the
            paper).
        eos_anchor: whether a predicted end of text can be an anchor. Off, long answers are less likely to be cut short.
        given_anchor: whether what is decided already, the prompt included, counts as an anchor (not in the paper).
        by: what is compared with both thresholds: the predicted token's probability, or its lead over the second one (`margin`).
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4
    decay: bool = False
    eos_anchor: bool = True
    given_anchor: bool = False
    by: Literal["confidence", "margin"] = "confidence"

    def __post_init__(self) -> None:
        DenoisingConfig.__post_init__(self)
        rules = {
            "threshold": (self.threshold >= 0, "at least 0"),
            "relaxed": (0 <= self.relaxed <= self.threshold, f"between 0 and threshold={self.threshold}"),
            "radius": (self.radius >= 0, "at least 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"localleap: option {name}={getattr(self, name)!r} must be {wanted}")


@dataclass(frozen=True, slots=True)
class Leap:
    """Anchors, and positions near them that are likely enough; the best position if there are none.

    Only open positions of the current block are anchors, and what is decided because it is near one does not become one itself: both would
    be other methods. Distances count positions of the canvas.

    Source: LocalLeap (arXiv 2510.07081).

    Args:
        threshold, relaxed, radius, decay, given_anchor: as in `LocalLeapConfig`.
        never: ids that do not make a position an anchor.
        margin: compare scores (the lead over the second token) instead of probabilities.
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4
    decay: bool = False
    never: tuple[int, ...] = ()
    given_anchor: bool = False
    margin: bool = False
    scope: Scope = "open"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        sure = guesses.score if self.margin else guesses.logprob
        anchors = guesses.open & (sure >= self._bar(self.threshold)) & ~np.isin(guesses.tokens, self.never)
        where = guesses.positions[anchors]
        if self.given_anchor:
            where = np.sort(np.concatenate([where, np.flatnonzero(~canvas.open)]))
        away = distances(guesses.positions, where)
        near = guesses.open & (away <= self.radius) & (sure >= self._relaxed(away))
        chosen: Flags = anchors | near | guesses.best(1)
        return chosen

    def over(self, canvas: Canvas) -> bool:
        return False

    def _relaxed(self, away: Floats) -> Floats:
        """What is enough at each distance; log-probabilities unless margins are compared."""
        if not self.decay or self.radius == 0:
            return np.full(len(away), self._bar(self.relaxed))
        rise = (self.threshold - self.relaxed) * (np.clip(away, 1, self.radius) - 1) / self.radius
        with np.errstate(divide="ignore"):
            bars: Floats = self.relaxed + rise if self.margin else np.log(self.relaxed + rise)
        return bars

    def _bar(self, probability: float) -> float:
        if self.margin:
            return probability
        return log(probability) if probability > 0 else -np.inf


def distances(positions: Ints, anchors: Ints) -> Floats:
    """How far each position is from the nearest anchor; infinite where there is none.

    Args:
        positions: any.
        anchors: ascending.
    """
    if not len(anchors):
        return np.full(len(positions), np.inf)
    right = np.searchsorted(anchors, positions)
    after = anchors[np.minimum(right, len(anchors) - 1)]
    before = anchors[np.maximum(right - 1, 0)]
    away: Floats = np.minimum(np.abs(after - positions), np.abs(positions - before)).astype(np.float64)
    return away


class LocalLeap:
    """The registry's entry."""

    Config = LocalLeapConfig

    @staticmethod
    def build(config: LocalLeapConfig, context: DenoiseContext) -> Denoiser:
        """The decoder for a model."""
        margin = config.by == "margin"
        rule = Leap(
            config.threshold,
            config.relaxed,
            config.radius,
            config.decay,
            () if config.eos_anchor else context.eos,
            config.given_anchor,
            margin,
        )
        return assemble(config, context, rule, measure="margin" if margin else "probability")

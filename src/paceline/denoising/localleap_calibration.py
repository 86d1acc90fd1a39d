"""How reliable predictions are, by confidence and by distance to the nearest anchor: what LocalLeap's thresholds are chosen from.

Decode some prompts statically with `Watch` around the rule; every prediction of every step is then compared with the token that the
position got in the end (LocalLeap, arXiv 2510.07081, the observation that the method rests on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.denoising.canvas import Canvas, Flags, Floats, Ints
from paceline.denoising.guesses import Guesses
from paceline.denoising.localleap import distances
from paceline.denoising.rules import CommitRule, Scope

BINS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Watch:
    """A commit rule that decides as another one does, and keeps what it was shown.

    Args:
        rule: decides.
        seen: every canvas with the guesses of one of its steps; a canvas goes on, so in the end it holds the final tokens.
    """

    rule: CommitRule
    seen: list[tuple[Canvas, Guesses]] = field(default_factory=list)

    @property
    def scope(self) -> Scope:
        """That of the rule."""
        return self.rule.scope

    @property
    def entropy(self) -> bool:
        """That of the rule."""
        return self.rule.entropy

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        self.seen.append((canvas, guesses))
        return self.rule.choose(guesses, canvas)

    def over(self, canvas: Canvas) -> bool:
        return self.rule.over(canvas)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for open positions, one row per step and position.

    Args:
        confidence: probability of the predicted token.
        distance: to the nearest anchor of the step, in positions; 0 for anchors, infinite where there is none.
        final: whether the position got that token in the end.
    """

    confidence: Floats
    distance: Floats
    final: Flags


@dataclass(frozen=True, slots=True)
class Cell:
    """Predictions of one range of confidence at one distance.

    Args:
        distance: to the nearest anchor.
        low, high: range of confidence, `high` excluded but for the last.
        count: predictions in it.
        final: share of them that the position kept; NaN where there are none.
    """

    distance: int
    low: float
    high: float
    count: int
    final: float


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of LocalLeap.

    Args:
        radius, relaxed: see `LocalLeapConfig`.
        count: predictions up to the radius that reach the relaxed threshold.
        wrong: share of them that changed later.
    """

    radius: int
    relaxed: float
    count: int
    wrong: float


def predictions(seen: Sequence[tuple[Canvas, Guesses]], anchor: float) -> Predictions:
    """All predictions that were watched.

    Args:
        seen: by `Watch`, of finished answers.
        anchor: probability that makes an open position an anchor.
    """
    parts: list[Predictions] = []
    for canvas, guesses in seen:
        chance = np.exp(guesses.logprob)
        anchors: Ints = guesses.positions[guesses.open & (chance >= anchor)]
        away = distances(guesses.positions, anchors)
        kept: Flags = canvas.ids[guesses.positions] == guesses.tokens
        parts.append(Predictions(chance[guesses.open], away[guesses.open], kept[guesses.open]))
    return joined(parts)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """All predictions of several answers."""
    if not parts:
        return Predictions(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    confidence, distance, final = (np.concatenate([getattr(part, name) for part in parts]) for name in ("confidence", "distance", "final"))
    return Predictions(confidence, distance, final.astype(bool))


def consistency(found: Predictions, furthest: int = 16, bins: Sequence[float] = BINS) -> list[Cell]:
    """The table by distance 1 to `furthest` and range of confidence."""
    cells = []
    last = len(bins) - 2
    for distance in range(1, furthest + 1):
        here = found.distance == distance
        for index in range(len(bins) - 1):
            low, high = bins[index], bins[index + 1]
            inside = here & (found.confidence >= low) & ((found.confidence < high) | (index == last))
            count = int(inside.sum())
            cells.append(Cell(distance, low, high, count, float(found.final[inside].mean()) if count else float("nan")))
    return cells


def by_distance(found: Predictions, furthest: int = 16) -> list[float]:
    """Share of predictions that are final at distance 1, 2, ...; NaN where there are none."""
    shares = []
    for distance in range(1, furthest + 1):
        here = found.final[found.distance == distance]
        shares.append(float(here.mean()) if len(here) else float("nan"))
    return shares


def suggested(found: Predictions, error: float, furthest: int = 16, least: int = 20) -> list[float]:
    """Per distance, the lowest confidence from which on predictions are final but for a share `error`.

    Args:
        found: to choose by.
        error: wanted share of predictions that change later.
        furthest: distances 1 to this one.
        least: predictions that a threshold must rest on; with fewer at a distance, the threshold is 1.
    """
    return [_lowest(found, found.distance == distance, error, least)[0] for distance in range(1, furthest + 1)]


def best_setting(found: Predictions, anchor: float, error: float, furthest: int = 16, least: int = 20) -> Setting | None:
    """The radius and relaxed threshold that let LocalLeap decide the most predictions near anchors.

    Args:
        found: to choose by; of anchors with probability `anchor`.
        anchor: above this relaxing changes nothing.
        error, furthest, least: as for `suggested`, over all distances up to the radius together.

    Returns:
        `None` where no threshold below the anchors' meets the wanted error.
    """
    best: Setting | None = None
    for radius in range(1, furthest + 1):
        near = (found.distance >= 1) & (found.distance <= radius)
        relaxed, count, wrong = _lowest(found, near, error, least)
        if relaxed < anchor and (best is None or count > best.count):
            best = Setting(radius, relaxed, count, wrong)
    return best


def _lowest(found: Predictions, here: Flags, error: float, least: int) -> tuple[float, int, float]:
    """Lowest confidence from which on some predictions are final but for a share `error`, how many those are, and their actual share."""
    order = np.argsort(-found.confidence[here], kind="stable")
    confidence, wrong = found.confidence[here][order], np.cumsum(~found.final[here][order])
    counts = np.arange(1, len(order) + 1)
    ends = np.append(confidence[1:] < confidence[:-1], True)[: len(order)]  # equal confidences pass or fail together
    good = np.flatnonzero((wrong <= error * counts) & (counts >= least) & ends)
    if not len(good):
        return 1.0, 0, 0.0
    last = int(good[-1])
    return float(confidence[last]), last + 1, float(wrong[last] / (last + 1))

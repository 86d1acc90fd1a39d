"""Commit rules: which of the guessed positions are decided now. A rule sees guesses and state, never the model."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal, Protocol

import numpy as np

from paceline.core.rng import Purpose, uniform
from paceline.denoising.canvas import Canvas, Flags, Floats
from paceline.denoising.guesses import Guesses
from paceline.denoising.schedule import DreamSteps, PerStep, Schedule

Scope = Literal["open", "block"]


class CommitRule(Protocol):
    """Decides after each forward. Rules hold no state of an answer: everything they may depend on is in the canvas."""

    @property
    def scope(self) -> Scope:
        """Positions it wants guesses for: the open ones of the block, or all of the block."""

    @property
    def entropy(self) -> bool:
        """Whether it needs the entropy of guesses."""

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        """Marks the guesses to commit, a subset of the open ones."""

    def over(self, canvas: Canvas) -> bool:
        """Whether the block ends although positions are open (a static schedule that has run out of steps)."""


@dataclass(frozen=True, slots=True)
class Static:
    """A fixed number of positions per step, in the order of their scores.

    Source: LLaDA (arXiv 2502.09992), "low-confidence remasking"; Dream's `alg_temp`.

    Args:
        schedule: how many per step.
        order: by score; at random, redrawn in every step; or from left to right.
        temperature: above 0, positions are drawn without replacement with odds `exp(confidence / temperature)` instead of taken in order.
    """

    schedule: Schedule = PerStep(1)  # noqa: RUF009  frozen
    order: Literal["score", "random", "sequential"] = "score"
    temperature: float = 0.0
    scope: Scope = "open"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        return guesses.best(self.schedule.count(canvas), self._scores(guesses, canvas))

    def over(self, canvas: Canvas) -> bool:
        return canvas.step >= self.schedule.steps(canvas)

    def _scores(self, guesses: Guesses, canvas: Canvas) -> Floats:
        if self.order == "sequential":
            return -guesses.positions.astype(np.float64)
        if self.order == "score" and self.temperature == 0:
            return guesses.score
        numbers = order_numbers(guesses, canvas.seed, canvas.committed)
        if self.order == "random":
            return np.where(np.isposinf(guesses.score), np.inf, numbers)
        with np.errstate(divide="ignore"):
            return guesses.score / self.temperature - np.log(-np.log(numbers))  # Gumbel top-k: Vieira 2014, Kool et al. 2019


@dataclass(frozen=True, slots=True)
class Origin:
    """Every open position is decided with the probability by which time shrinks, independently; all of them in the last step.

    Source: Dream (arXiv 2508.15487), `alg="origin"`.
    """

    schedule: DreamSteps
    scope: Scope = "open"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        draw = (canvas.low << 32) + canvas.step  # not the number of decided tokens: a step may decide none
        numbers = order_numbers(guesses, canvas.seed, draw)
        chosen: Flags = guesses.open & (numbers < self.schedule.share(canvas))
        return chosen

    def over(self, canvas: Canvas) -> bool:
        return canvas.step >= self.schedule.steps(canvas)


@dataclass(frozen=True, slots=True)
class Threshold:
    """All positions whose token is likely enough, and at least the best ones.

    Source: Fast-dLLM (arXiv 2505.22618), sec. 3.3; with `least` above 1, SDAR's dynamic low-confidence strategy (arXiv 2510.06303).

    Args:
        threshold: probability of the predicted token, at temperature 1; 0 decides the whole block, above 1 only the best.
        least: positions decided even if fewer are likely enough.
    """

    threshold: float = 0.9
    least: int = 1
    scope: Scope = "open"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        bar = log(self.threshold) if self.threshold > 0 else -np.inf
        chosen: Flags = (guesses.open & (guesses.logprob >= bar)) | guesses.best(self.least)
        return chosen

    def over(self, canvas: Canvas) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Factor:
    """The most likely positions, as many as their joint prediction is still safe for: rank n needs probability 1 - f / (n + 1).

    With f = 1 this is the bound under which the tokens with the largest marginals are also the most likely together (Fast-dLLM, arXiv
    2505.22618, theorem 1). Every rank from 2 on must pass: one that fails ends the list.

    Args:
        factor: slack f; larger decides more at once, 0 only what is certain.
    """

    factor: float = 1.0
    scope: Scope = "open"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        certain = np.isposinf(guesses.score)
        confidence = np.where(certain, 1.0, np.exp(guesses.logprob))
        order = guesses.ranked(np.where(certain, np.inf, guesses.logprob))
        ranks = np.arange(1, len(order) + 1)
        passes = confidence[order] >= 1 - self.factor / (ranks + 1)
        passes[:1] = True
        marks = np.zeros(len(guesses.positions), dtype=bool)
        marks[order[np.logical_and.accumulate(passes)]] = True
        return marks

    def over(self, canvas: Canvas) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """The surest positions, as long as their entropies add up to less than a bound, and at least the surest.

    Source: SDAR (arXiv 2510.06303), `entropy_bounded`.

    Args:
        bound: on the sum of entropies, in nats.
    """

    bound: float = 0.35
    scope: Scope = "open"
    entropy: bool = True

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        certain = np.isposinf(guesses.score)
        cost = np.where(certain, 0.0, guesses.entropy)
        order = guesses.ranked(np.where(certain, np.inf, -cost))
        passes = np.cumsum(cost[order]) < self.bound
        passes[:1] = True
        marks = np.zeros(len(guesses.positions), dtype=bool)
        marks[order[np.logical_and.accumulate(passes)]] = True
        return marks

    def over(self, canvas: Canvas) -> bool:
        return False


def order_numbers(guesses: Guesses, seed: int, draw: int) -> Floats:
    """A number in [0, 1) per position: a function of seed, position and draw alone, whatever else is in the batch."""
    return np.array([uniform(seed, int(at), Purpose.ORDER, draw) for at in guesses.positions])

"""Chains of drafted states, and how far plain decoding would have gone along them.

A state is a canvas. The transition is that of the decoder's commit rule, whatever it is: drafts apply it again and again to guesses made
for an earlier state, verification applies it once to guesses made for the state itself.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Literal

import numpy as np

from paceline.denoising.canvas import Canvas
from paceline.denoising.guesses import Guesses

Transition = Callable[[Canvas, Guesses], None]  # one step of a canvas, in place
Match = Literal["exact", "subset"]


def within(guesses: Guesses, state: Canvas) -> Guesses:
    """Guesses about a state's own block, those marked open that it may decide next."""
    low, high = np.searchsorted(guesses.positions, (state.low, state.high))
    positions = guesses.positions[low:high]
    return Guesses(
        positions, guesses.tokens[low:high], guesses.logprob[low:high], guesses.score[low:high], guesses.entropy[low:high],
        state.open[positions],
    )  # fmt: skip


def stepped(state: Canvas, guesses: Guesses, transition: Transition) -> Canvas:
    """The state behind one transition; the given one is left alone."""
    after = state.copy()
    transition(after, within(guesses, state))
    return after


def chain(canvas: Canvas, guesses: Guesses | None, most: int, transition: Transition) -> tuple[Canvas, ...]:
    """The canvas, and the states that plain decoding would pass through if its guesses stayed what they were.

    A state that needs no forward any more is left out: what leads to it is decided by the state before. So is one that the guesses say
    nothing about.

    Args:
        canvas: as it is; the first state, certainly right.
        guesses: of an earlier state, or `None`.
        most: states in all.
        transition: of the decoder.
    """
    states = [canvas]
    while guesses is not None and len(states) < most and within(guesses, states[-1]).open.any():
        after = stepped(states[-1], guesses, transition)
        if after.finished or not within(guesses, after).open.any():
            break
        states.append(after)
    return tuple(states)


def walk(states: Many[Canvas], found: Many[Guesses], transition: Transition, match: Match) -> list[int]:
    """Indices of the states that verification goes through, from 0 on.

    Args:
        states: drafted.
        found: what a forward says about each of them.
        transition: of the decoder.
        match: `exact`: the next state must be what the decoder makes of the one before. `subset`: everything decided in it must be decided
            there, with the same tokens; the furthest such state is taken (FreeDave++).
    """
    path = [0]
    while True:
        at = path[-1]
        if at + 1 == len(states):
            return path
        target = stepped(states[at], found[at], transition)
        agreeing = [later for later in range(at + 1, len(states)) if _agrees(states[later], target, match)]
        if not agreeing:
            return path
        path.append(agreeing[-1])


def _agrees(draft: Canvas, target: Canvas, match: Match) -> bool:
    if match == "exact":
        return draft.low == target.low and np.array_equal(draft.open, target.open) and np.array_equal(draft.ids, target.ids)
    decided = ~draft.open
    return not target.open[decided].any() and np.array_equal(draft.ids[decided], target.ids[decided])

"""dKV-Cache: keys and values of a decided position are computed once more, with its token in place of the mask, and then read as they are.

The number of forwards stays; the rows in each shrink. Nothing is stored apart: a canvas's slots hold what the last forward that fed a
position left there, so that a cache is a set of fed positions.

Source: dKV-Cache (arXiv 2505.15781).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paceline.core.batch import MemoryView
from paceline.core.errors import UsageError
from paceline.denoising.canvas import Canvas, Flags, Ints
from paceline.denoising.guesses import Guesses
from paceline.denoising.policies import Look, canvas_rows
from paceline.denoising.rules import CommitRule, Static
from paceline.denoising.schedule import Schedule
from paceline.models.config import DiffusionSpec

DKV = Literal["dkv-decode", "dkv-prefill", "dkv-pd", "dkv-greedy"]
Center = Literal["prev", "next"]
Storable = Literal["both", "un", "right"]
Walk = Literal["masked", "span"]

GREEDY_REFRESH = 2
REFRESH, SHIFTED_REFRESH = 8, 4  # LLaDA's and Dream's, in the paper's tables
WARM = 2  # leading steps of a block that compute everything; one less in models with shifted predictions, and without a delay


@dataclass(frozen=True, slots=True)
class Delayed:
    """Variants Decode, Prefill and PD: what was decided before the last step is not fed.

    A position that step i decides is fed again by step i + 1, now with its token, and left out from step i + 2 on. Open positions are
    always fed, those of later blocks too.

    Args:
        refresh: compute everything every so many steps of a block, and in its first ones; 1 is no cache.
        hold: never compute the prompt again after an answer's first forward (PD; with refresh 1, Prefill).
        shifted: where a position predicts the one behind it (Dream), which positions may be left out: those that are decided and whose
            successor is (`both`), whose successor is (`un`), or that are (`right`); `None` where a position predicts itself.
        schedule: of the commit rule, if it has one: as many positions are given a prediction as it will decide.
        delay: feed a decided position once more. Off, what was computed for the mask is kept (the paper's ablation).
    """

    refresh: int = REFRESH
    hold: bool = False
    shifted: Storable | None = None
    schedule: Schedule | None = None
    delay: bool = True
    anew: bool = True

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        if canvas.forwards == 0:
            return canvas_rows(canvas, view, range(canvas.length))
        anew = np.ones(canvas.length, dtype=bool)
        if self.hold:
            anew[: max(0, canvas.prompt - (self.shifted is not None))] = False
        fed = anew if self._renews(canvas) else anew & ~self.storable(canvas)
        if self._starved(canvas, fed):
            fed = anew
        return canvas_rows(canvas, view, np.flatnonzero(fed).tolist())

    def storable(self, canvas: Canvas) -> Flags:
        """Positions whose keys and values are read as they are, unless everything is computed."""
        done: Flags = ~canvas.open & (canvas.decided < canvas.forwards + (not self.delay))
        if self.shifted is None:
            return done
        ahead = np.append(done[1:], done[-1:])  # nothing is behind the last position
        found: Flags = {"both": done & ahead, "un": ahead, "right": done}[self.shifted]
        if 0 < canvas.prompt < canvas.length:  # the prompt's last token predicts the first of the answer
            found[canvas.prompt - 1] &= done[canvas.prompt]
        return found

    def _renews(self, canvas: Canvas) -> bool:
        warm = WARM if self.delay and self.shifted is None else WARM - 1
        return canvas.step < warm or canvas.step % self.refresh == 0

    def _starved(self, canvas: Canvas, fed: Flags) -> bool:
        """Whether fewer positions would be predicted than are to be decided (`right` leaves out rows that predict open positions)."""
        wanted = 1 if self.schedule is None else max(1, self.schedule.count(canvas))
        predictors = canvas.open_in_block() - (self.shifted is not None)
        return int(fed[predictors[predictors >= 0]].sum()) < wanted


@dataclass(frozen=True, slots=True)
class Ordered:
    """Variant Greedy: only what the last step decided, what this one decides, and masked positions near them are fed.

    It needs to know what a step decides before its forward, as rules with a random or sequential order do.

    Args:
        rule: of the decoder.
        refresh: compute everything every so many steps of a block; 1 is no cache.
        window: positions fed around every centre.
        center: what the last step decided (`prev`), or what this one decides (`next`).
        walk: outwards, left and right in turn, over masked positions (`masked`), or everything that near (`span`, the paper's formula).
    """

    rule: Static
    refresh: int = GREEDY_REFRESH
    window: int = 4
    center: Center = "prev"
    walk: Walk = "masked"
    anew: bool = True

    def look(self, canvas: Canvas, view: MemoryView, room: int) -> Look:
        coming = self.coming(canvas)
        if canvas.step % self.refresh == 0 or not len(coming):
            return canvas_rows(canvas, view, range(canvas.length))
        late = np.flatnonzero(canvas.decided == canvas.forwards)
        fed = {*late.tolist(), *coming.tolist()}
        centers = (late if self.center == "prev" else coming).tolist()
        fed |= around(canvas.open, centers, fed, self.window) if self.walk == "masked" else span(canvas.length, centers, self.window)
        return canvas_rows(canvas, view, sorted(fed))

    def coming(self, canvas: Canvas) -> Ints:
        """Positions that the next step decides."""
        positions = canvas.open_in_block()
        blank = np.zeros(len(positions))
        unknown = Guesses(positions, np.zeros(len(positions), dtype=np.int64), blank, blank, blank[:0], np.ones(len(positions), dtype=bool))
        return positions[self.rule.choose(unknown, canvas)]


def around(masked: Flags, centers: list[int], taken: set[int], window: int) -> set[int]:
    """Masked positions near every centre, `window` for each as far as there are any, none of them taken or counted twice."""
    found: set[int] = set()
    for center in centers:
        free = [at for at in np.flatnonzero(masked).tolist() if at not in taken and at not in found]
        nearest = sorted((abs(at - center), at > center, at) for at in free)
        found.update(at for _, _, at in nearest[:window])
    return found


def span(length: int, centers: list[int], window: int) -> set[int]:
    """Positions of a canvas near every centre, masked or not: as many before it as behind it, one more before it where `window` is odd."""
    return {at for center in centers for at in range(max(0, center - -(-window // 2)), min(length, center + window // 2 + 1))}


def delayed_policy(
    cache: DKV,
    spec: DiffusionSpec,
    rule: CommitRule,
    refresh: int,
    window: int,
    center: Center,
    storable: Storable,
    walk: Walk = "masked",
) -> Delayed | Ordered:
    """The policy of a `cache` option.

    Args:
        refresh: 0 takes the variant's default.

    Raises:
        UsageError: where the variant does not fit the model or the rule, naming the remedy.
    """
    if cache == "dkv-greedy":
        if spec.shifted:
            raise UsageError("denoising option cache=dkv-greedy: this model predicts one position ahead; use cache=dkv-decode")
        if not isinstance(rule, Static) or rule.order == "score":
            raise UsageError(
                "denoising option cache=dkv-greedy: needs an order known before the forward; use static:algorithm=random (or sequential), "
                "or cache=dkv-decode"
            )
        return Ordered(rule, refresh or GREEDY_REFRESH, window, center, walk)
    if cache == "dkv-prefill":
        refresh = 1
    return Delayed(
        refresh or (SHIFTED_REFRESH if spec.shifted else REFRESH),
        hold=cache != "dkv-decode",
        shifted=storable if spec.shifted else None,
        schedule=getattr(rule, "schedule", None),
    )

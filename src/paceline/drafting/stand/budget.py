"""Which draws STAND makes: those that bring more tokens per second than their row costs, down to none where nothing repeats.

A draw is worth making if its chance to be accepted is larger than the tokens that the time of its row would bring otherwise: the present
speed times the marginal cost of a row. Chances are measured by kind: the length of the context that was found, how many siblings were drawn
before, and how decided the remembered law is. All of it is known before the value of the draw, so that sampling stays exact.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

from paceline.drafting.stand.table import Entry
from paceline.planning.cost import ForwardCost

MEMORY = 128  # judged draws that an estimate remembers
FIRST = 3.0  # judged draws that the first guess weighs
PEAKS = (0.3, 0.6, 0.85, 0.97)  # how decided a law is: probability of its likeliest token, or of what was not drawn yet
RANKS = 3  # first draws, second ones, and all later ones
EAGER = 0.5  # of the chance that pays at once: a draw teaches what such draws are worth, and later levels hang on it
SPEED = 0.05  # weight of a step in the measured speed
SPAN = 4  # rows that the marginal cost is taken over: single rows cost nothing or much, as kernels have it
FEW, SELDOM = 8, 128  # steps without a draw after which the likeliest is made anyway; twice as many each time that it fails


class Mean:
    """Of the last values, and of the products of their deviations with others'."""

    __slots__ = ("mean", "spread")

    def __init__(self) -> None:
        self.mean = self.spread = 0.0

    def add(self, value: float, product: float) -> None:
        """One more value; the first one is the mean."""
        self.spread += SPEED * (product - self.spread) if self.mean else 0.0
        self.mean += (SPEED if self.mean else 1.0) * (value - self.mean)


class Prospects:
    """Chances of draws, and the least chance that pays.

    Args:
        cost: seconds of a forward with n rows.
        longest: length of the longest context.
        copied: length of the longest suffix that a copy rests on.
    """

    def __init__(self, cost: ForwardCost, longest: int, copied: int = 0) -> None:
        self.cost, self.longest, self._suffixes = cost, longest, copied
        bins = len(PEAKS) + 1
        drawn = [0.15 + 0.6 * (at % bins) / bins if at // bins % RANKS == 0 else 0.15 for at in range((longest + 1) * RANKS * bins)]
        # measured share of draws of each class that were accepted once judged
        self.rates = array("d", drawn + [0.6] * (copied * RANKS * bins))
        self._seen = [FIRST] * len(self.rates)
        self._tokens, self._seconds = 1.0, cost(1)
        self.hand = 0.0  # seconds that the host takes for one more draw
        self._drawn, self._took = Mean(), Mean()

    @staticmethod
    def kind(length: int, rank: int, peak: float) -> int:
        """Class of a draw.

        Args:
            length: of the context that was found.
            rank: siblings drawn before.
            peak: probability of the likeliest token for a first draw, of all that is left for later ones.
        """
        return (length * RANKS + min(rank, RANKS - 1)) * (len(PEAKS) + 1) + bisect_right(PEAKS, peak)

    def copied(self, suffix: int, depth: int) -> int:
        """Class of a copied token.

        Args:
            suffix: length of what the copy rests on.
            depth: tokens copied before.
        """
        return (self.longest + suffix) * RANKS * (len(PEAKS) + 1) + min(depth, len(PEAKS))

    def opening(self, entry: Entry, length: int) -> float:
        """Chance of the first draw from an entry that a context of this length found."""
        return self.rates[self.kind(length, 0, entry.peak)]

    def copying(self) -> float:
        """Chance of the first token of a copy that rests on the best kind of suffix."""
        return max([self.rates[self.copied(suffix, 0)] for suffix in range(1, self._suffixes + 1)])

    @property
    def pace(self) -> float:
        """Tokens per second at present."""
        return self._tokens / self._seconds

    def least(self, rows: int) -> float:
        """The chance below which a further row does not pay, in a forward that has so many already."""
        row = (self.cost(rows + SPAN) - self.cost(rows)) / SPAN
        return self.pace * (EAGER * row + self.hand)

    def drew(self, draws: int, seconds: float) -> None:
        """So many draws took the host so long. Small models are done with a row sooner than the host is with a draw.

        Most of what the host does for a step it does for the first draw as well: what counts is how much longer more of them take.
        """
        if seconds > 2 * self._took.mean > 0:  # an interruption says nothing of draws; only if it goes on, hosts became slower
            self._took.mean *= 1 + SPEED
            return
        more, longer = draws - self._drawn.mean, seconds - self._took.mean
        self._drawn.add(draws, more * more)
        self._took.add(seconds, more * longer)
        if self._drawn.spread > 0:
            self.hand = max(0.0, self._took.spread / self._drawn.spread)

    def judged(self, kind: int, accepted: bool) -> None:
        """A draw was judged."""
        seen = self._seen[kind] = min(self._seen[kind] + 1, MEMORY)
        self.rates[kind] += (accepted - self.rates[kind]) / seen

    def stepped(self, rows: int, tokens: int) -> None:
        """A step brought so many tokens: the speed that further rows are weighed against."""
        self._tokens += SPEED * (tokens - self._tokens)
        self._seconds += SPEED * (self.cost(rows) - self._seconds)


THIN = 4  # of the steps of a sequence whose tries failed again and again, one in so many is learned from


class Patience:
    """Of one sequence: lets a draw be made now and then although none seems to pay, for what is never tried is never seen to pay."""

    __slots__ = ("idle", "pause", "trying")

    def __init__(self) -> None:
        self.idle, self.pause, self.trying = 0, FEW, False

    @property
    def due(self) -> bool:
        """Whether this step should try if nothing seems to pay."""
        return self.idle + 1 >= self.pause

    def asked(self) -> None:
        """Nothing seemed to pay in this step."""
        self.trying = self.due
        self.idle += 1

    def learns(self, step: int) -> bool:
        """Whether this step is to be learned from: laws cost host time, which text that never repeats does not give back."""
        return self.pause <= 2 * FEW or step % THIN == 0

    def judged(self, drawn: bool, accepted: bool) -> None:
        """The step is over."""
        if accepted:
            self.pause = FEW
        elif drawn and self.trying:
            self.pause = min(SELDOM, 2 * self.pause)
        if drawn:
            self.idle = 0
        self.trying = False

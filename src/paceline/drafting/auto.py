"""`method="auto"`: runs, step by step, the drafter that has lately made the most tokens per second here, and tries the others now and then.

Every drafter it chooses from sizes its own drafts by the measured cost of a forward, down to none. Which of them is best depends on the
text, on what was answered before and on how many sequences share a forward; so it is not modelled but measured, apart for each size of
the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import reduce

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, Drafter, DraftLimits, Remembers
from paceline.drafting.lookahead import Lookahead, LookaheadConfig
from paceline.drafting.planned import Planned, PlannedConfig
from paceline.drafting.rest import Questions, Rest

TRIAL = 8  # steps that every drafter gets first
BURST = 4  # steps of a later trial
SOON, LATE = 64, 4096  # steps to the next trial of a drafter that was worse: at first, and at most
MEMORY = 64  # steps that a rate remembers


@dataclass(frozen=True, slots=True)
class AutoConfig:
    """Options of the choice.

    Args:
        lookup_length: longest draft copied from the sequence's own text.
        draft_length: longest draft of the draft model.
        shared: whether drafts may also come from earlier answers of the same tenant (Lookahead).
    """

    lookup_length: int = 16
    draft_length: int = 6
    shared: bool = True


@dataclass(slots=True)
class Rate:
    """Tokens per second of one drafter at one size of the batch, and when it is to be tried again."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    interval: int = SOON
    due: int = 0

    @property
    def value(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step made so many tokens in that time."""
        forget = 1 - 1 / MEMORY
        self.tokens, self.seconds, self.steps = self.tokens * forget + tokens, self.seconds * forget + seconds, self.steps + 1


class Auto:
    """Chooses among drafters by measured speed.

    Args:
        parts: the drafters; the first is run while nothing is known.
    """

    Config = AutoConfig

    def __init__(self, parts: Many[Drafter]) -> None:
        self.parts = list(parts)
        self.taps: TapRequest = reduce(TapRequest.__or__, (part.taps for part in parts), NO_TAPS)  # what any part wants
        self._rates: dict[int, list[Rate]] = {}
        self._steps = 0
        self._running = 0  # the part that drafts
        self._size = 0  # of the batch that the choice was made for
        self._left = 0  # steps before the choice is open again
        self._tries = False  # whether it runs to be tried
        self._rests = [Rest() for _ in self.parts]
        self._asked = True
        self._counted: Rate | None = None
        self._questions = Questions()

    @classmethod
    def build(cls, config: AutoConfig, context: DraftContext) -> Auto:
        """What fits this context: planned chains, with the draft model if there is one, and Lookahead."""
        planned = Planned.build(PlannedConfig(config.lookup_length, config.draft_length), context)
        if not config.shared:
            return cls([planned])
        known = replace(context, probe=planned.cost)  # what a forward costs is measured once
        return cls([planned, Lookahead(LookaheadConfig(), known, rests=False)])

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """The drafts of the part whose turn it is."""
        self._questions.begin()
        before = self._running
        rate = self._choose(len(sequences).bit_length())
        # Neither a step that also reads a prompt nor the first one after a change, which catches up, says how fast a part is.
        fresh = any(len(sequence.tokens) == len(sequence.request.ids) for sequence in sequences)
        self._counted = None if fresh or before != self._running else rate
        rest = self._rests[self._running]
        if fresh or (before != self._running and self._tries):  # a new text, or a trial
            rest.wake()
        self._asked = rest.asks()
        if not self._asked:
            return [TokenTree.chain(sequence.tokens[-1]) for sequence in sequences]
        trees = self.parts[self._running].propose(sequences, limits)
        self._questions.drafted()
        return trees

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """The part that drafted learns; the others catch up when it is their turn."""
        self._questions.judged()
        if self._asked:
            self.parts[self._running].observe(sequences, trees, verdicts, taps)
        seconds, cost = self._questions.end()
        tokens = sum([len(verdict.tokens) for verdict in verdicts])
        if self._asked:
            self._rests[self._running].note(cost, (tokens - len(verdicts)) / len(verdicts))
        if self._counted is not None:
            self._counted.observe(tokens, seconds)

    def release(self, sequence: Sequence) -> None:
        for part in self.parts:
            part.release(sequence)

    def forget(self) -> None:
        """Forget earlier answers, in the parts that remember any."""
        for part in self.parts:
            if isinstance(part, Remembers):
                part.forget()

    def memory_bytes(self) -> int:
        """Sum over parts."""
        return sum(part.memory_bytes() for part in self.parts)

    def _choose(self, size: int) -> Rate:
        """Whose turn it is with a batch of this size; sets `_running`. A choice holds for some steps."""
        rates = self._rates.get(size)
        if rates is None:
            rates = self._rates[size] = [Rate() for _ in self.parts]
        self._steps += 1
        held, self._size = size == self._size, size
        if held and self._left:
            self._left -= 1
            return rates[self._running]
        best = max(range(len(rates)), key=lambda at: rates[at].value)
        self._running, self._left, self._tries = best, BURST - 1, False
        for at, rate in enumerate(rates):
            if rate.steps < TRIAL:
                self._running, self._left, self._tries = at, TRIAL, True
                break
            if at != best and rate.due <= self._steps:
                rate.interval = min(2 * rate.interval, LATE)
                rate.due = self._steps + rate.interval
                self._running, self._left, self._tries = at, BURST, True
                break
        if self._running == best:
            rates[best].interval = SOON  # once it falls behind, it is soon tried again
        return rates[self._running]

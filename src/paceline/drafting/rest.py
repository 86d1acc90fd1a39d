"""When to ask for drafts: as long as they pay for the questions; else only so often that the questions cost next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

SHARE = 0.005  # of the time of all steps that questions in vain may take
CREDIT = 0.3  # what an account begins with, in steps: spent on questions before they become rare
SAVINGS = 4.0  # most that is put aside of what questions brought
REST = 32  # most steps between two questions, whatever they cost: a change of the text must not go unnoticed

TICK = 1e-9  # seconds that the rest of a step takes at least


@dataclass(slots=True)
class Rest:
    """An account, of one drafter or of what it keeps for one sequence. It counts in steps, so that it knows no machine.

    Asking costs what the host takes for it. What is earned is a small share of every step, and the tokens that the step brought beyond
    its own: each would have taken a step otherwise.
    """

    balance: float = CREDIT

    def asks(self) -> bool:
        """Whether this step is one to ask in; one that is not earns its share at once, and needs no note."""
        if self.balance > 0:
            return True
        self.balance += SHARE
        return False

    def wake(self) -> None:
        """Something changed: the next step asks."""
        self.balance = max(self.balance, SHARE)

    def note(self, cost: float, accepted: float) -> None:
        """A step that asked is over.

        Args:
            cost: of asking, measured in the rest of the step.
            accepted: drafted tokens that were accepted, per sequence.
        """
        balance = self.balance + accepted - cost
        if balance < CREDIT:  # only questions fill an account beyond that
            balance = min(CREDIT, balance + SHARE)
        self.balance = min(SAVINGS, max(-SHARE * (REST - 1), balance))


@dataclass(slots=True)
class Questions:
    """Times what asking takes of a step, which lasts from its proposal to what is learned from its verdicts."""

    _begun: float = 0.0
    _drafted: float = 0.0
    _judged: float = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._begun = self._drafted = perf_counter()

    def drafted(self) -> None:
        """Its drafts are there."""
        self._drafted = perf_counter()

    def judged(self) -> None:
        """Its verdicts are there."""
        self._judged = perf_counter()

    def end(self) -> tuple[float, float]:
        """What could be learned is learned.

        Returns:
            Seconds of the step, and what drafting and learning took, measured in what the rest of it took.
        """
        now = perf_counter()
        asking = self._drafted - self._begun + now - self._judged
        seconds = now - self._begun
        return seconds, asking / max(seconds - asking, TICK)

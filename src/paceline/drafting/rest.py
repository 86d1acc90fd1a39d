"""When to ask for drafts: always, until nothing was accepted for a while; then less and less often, for asking is a cost too."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 8  # steps in a row in which nothing drafted was accepted, until questions become rarer
REST = 16  # steps between two questions in the end: on text that cannot be drafted, asking is all that a drafter costs


@dataclass(slots=True)
class Rest:
    """Of one drafter, or of what it keeps for one sequence.

    Args:
        idle: steps in a row in which nothing drafted was accepted, asked or not.
    """

    idle: int = 0

    def asks(self) -> bool:
        """Whether this step is one to ask in. The pauses between questions double, up to `REST`."""
        beyond = self.idle - PATIENCE
        return beyond < 0 or (beyond.bit_count() <= 1 if beyond < REST else beyond % REST == 0)

    def wake(self) -> None:
        """Something changed: questions come close again."""
        self.idle = min(self.idle, PATIENCE)

    def note(self, accepted: bool) -> None:
        """A step is over."""
        self.idle = 0 if accepted else self.idle + 1

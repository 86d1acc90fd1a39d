"""Where the time of a batched engine goes: drafting, verifying, keeping rows in line, and the rest."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.engine.loop import Engine
from paceline.engine.rectangle import DenseRunner


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds since the engine was made.

    Args:
        draft: proposing, without realignment of the draft's cache.
        verify: target forwards and judging, likewise without.
        align: bringing rows into line, in both caches; zero for ragged slots.
        other: scheduling, assembling, committing, emitting.
    """

    draft: float
    verify: float
    align: float
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.draft + self.verify + self.align + self.other

    def shares(self) -> dict[str, float]:
        """Draft, verify and align as shares of their sum, as the paper gives them."""
        parts = {"draft": self.draft, "verify": self.verify, "align": self.align}
        whole = sum(parts.values())
        return {name: seconds / whole if whole else 0.0 for name, seconds in parts.items()}

    def __sub__(self, earlier: Costs) -> Costs:
        return Costs(self.draft - earlier.draft, self.verify - earlier.verify, self.align - earlier.align, self.other - earlier.other)


def costs(engine: Engine) -> Costs:
    """Read off an engine. A drafter that runs a model of its own shows it as `runner`."""
    seconds = engine.phases.seconds
    target, draft = (_align_seconds(part) for part in (engine.runner, getattr(engine.drafter, "runner", None)))
    verify = seconds["forward"] + seconds["verify"] - target
    other = sum(seconds.values()) - seconds["forward"] - seconds["verify"] - seconds["draft"]
    return Costs(seconds["draft"] - draft, verify, target + draft, other)


def _align_seconds(runner: object) -> float:
    return runner.dense.traffic.seconds if isinstance(runner, DenseRunner) else 0.0

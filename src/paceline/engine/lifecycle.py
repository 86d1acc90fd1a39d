"""What every engine does with a request: queue its samples, stream their text, cancel them, and account for time by phase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from paceline.core.request import FinishReason, Request, Sequence
from paceline.engine.emission import Detokenizer, Emission, TextStream
from paceline.engine.runner import Runner

PHASES = ("schedule", "draft", "assemble", "forward", "verify", "commit", "emit")


@dataclass(slots=True)
class Phases:
    """Seconds spent in each phase of the loop, and how often it ran."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    steps: int = 0

    @property
    def overhead(self) -> float:
        """Share of the time that is neither drafting nor the target forward."""
        total = sum(self.seconds.values())
        return 0.0 if not total else 1 - (self.seconds["forward"] + self.seconds["draft"]) / total


class Clock:
    """Adds the time since the last lap to a phase."""

    def __init__(self, phases: Phases) -> None:
        self.phases, self.last = phases, perf_counter()

    def lap(self, phase: str) -> None:
        """The phase that has just ended."""
        now = perf_counter()
        self.phases.seconds[phase] += now - self.last
        self.last = now


class Lifecycle(ABC):
    """Requests of one loop over one runner.

    Args:
        runner: target weights and memory.
        detokenizer: turns ids into text, where there is a tokenizer.
    """

    scheduler: Any  # `add`, `remove`, `running`, `waiting`: each loop has its own kind

    def __init__(self, runner: Runner, detokenizer: Detokenizer | None) -> None:
        self.runner, self.detokenizer = runner, detokenizer
        self.phases = Phases()
        decoder = runner.decoder.config
        self.eos, self.context = frozenset(decoder.eos), decoder.max_positions
        self._streams: dict[int, TextStream] = {}
        self._arrived: dict[int, float] = {}
        self._next_uid = 0

    @abstractmethod
    def step(self) -> list[Emission]:
        """One forward for everybody whose turn it is."""

    @abstractmethod
    def _release(self, active: Any) -> None:
        """Give back what a cancelled sequence held."""

    def submit(self, request: Request, text: bool = False) -> list[Sequence]:
        """Queue the samples of a request.

        Args:
            text: whether emissions should carry text.

        Raises:
            CapacityError: if the prompt cannot fit.
        """
        sequences = []
        for sample in range(request.sampling.n):
            sequence = Sequence(self._next_uid, request, sample)
            self._next_uid += 1
            self.scheduler.add(sequence)
            if self.detokenizer is not None and (text or request.stop):
                self._streams[sequence.uid] = TextStream(self.detokenizer, request.stop)
            self._arrived[sequence.uid] = perf_counter()
            sequences.append(sequence)
        return sequences

    @property
    def idle(self) -> bool:
        """Whether nothing is running or waiting."""
        return not self.scheduler.running and not self.scheduler.waiting

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now; its memory is free when this returns. A finished sequence stays as it is."""
        if sequence.finished:
            return
        active = self.scheduler.remove(sequence)
        if active is not None:
            self._release(active)
        sequence.finish_reason = FinishReason.CANCELLED
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._streams.pop(sequence.uid, None)
        self._arrived.pop(sequence.uid, None)

"""Batching of answers that are denoised: a canvas has its full size from the start, so whoever is admitted runs to the end.

Nothing grows beyond what was promised at admission; there is no preemption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from paceline.core.errors import CapacityError
from paceline.core.request import FinishReason, Sequence
from paceline.denoising.canvas import Canvas
from paceline.memory.sequence import SequenceMemory
from paceline.memory.slots import OutOfSlots, SlotMemory
from paceline.scheduling.continuous import SchedulerConfig


@dataclass(slots=True, eq=False)
class Resident:
    """A sequence with its canvas and, once it runs, its memories.

    Args:
        sequence: whose output is emitted.
        canvas: what is decoded.
        memories: one, or two with guidance.
        reason: why the output has ended, although the canvas may not be full yet.
        times: when each forward was done, in seconds since arrival.
    """

    sequence: Sequence
    canvas: Canvas
    memories: list[SequenceMemory] = field(default_factory=list)
    reason: FinishReason | None = None
    times: list[float] = field(default_factory=list)


class CanvasScheduler:
    """Admission by priority, then arrival; turns in rotation.

    Args:
        memory: of the runner.
        config: limits of a step. A canvas whose forward is larger than `max_rows` runs alone.
        start: makes the canvas of a sequence.
        views: memories per canvas.
    """

    def __init__(self, memory: SlotMemory, config: SchedulerConfig, start: Callable[[Sequence], Canvas], views: int) -> None:
        self.memory, self.config, self.start, self.views = memory, config, start, views
        self.waiting: list[Sequence] = []
        self.running: list[Resident] = []
        self._canvases: dict[int, Canvas] = {}

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            CapacityError: if its canvas could not fit even alone.
            UsageError: if there can be no such canvas.
        """
        canvas = self.start(sequence)
        slots = canvas.slots * self.views
        if slots > self.memory.total_slots:
            raise CapacityError(
                f"a canvas of {canvas.length} tokens needs {slots} slots and the KV memory has {self.memory.total_slots}; "
                "raise kv_tokens or lower max_tokens"
            )
        self._canvases[sequence.uid] = canvas
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda sequence: (-sequence.request.priority, sequence.uid))

    def remove(self, sequence: Sequence) -> Resident | None:
        """Take a sequence out, running or waiting; its memory is the caller's to release."""
        self._canvases.pop(sequence.uid, None)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return None
        for resident in self.running:
            if resident.sequence is sequence:
                self.running.remove(resident)
                return resident
        return None

    def finish(self, resident: Resident) -> None:
        """Release a finished sequence."""
        self.running.remove(resident)
        self.release(resident)

    def release(self, resident: Resident) -> None:
        """Give back memories. Stored blocks of a block-causal model stay behind as reusable prefix."""
        for index, memory in enumerate(resident.memories):
            stored = [int(token) for token in resident.canvas.ids[: memory.length]]
            self.memory.release(memory, stored if resident.canvas.aligned and index == 0 else None)
        resident.memories.clear()

    def turns(self) -> Iterator[Resident]:
        """Running sequences, those that waited longest for a forward first."""
        self._admit()
        return iter(list(self.running))

    def served(self, residents: list[Resident]) -> None:
        """Put those that had a forward behind the others."""
        self.running = [*(other for other in self.running if other not in residents), *residents]

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.config.max_sequences:
            canvas = self._canvases[self.waiting[0].uid]
            if not self.memory.can_admit(canvas.slots * self.views):
                return
            resident = Resident(self.waiting[0], canvas)
            try:
                for view in range(self.views):
                    resident.memories.append(self._memory(canvas, resident.sequence, view))
            except OutOfSlots:
                self.release(resident)
                return
            del self._canvases[self.waiting.pop(0).uid]
            self.running.append(resident)

    def _memory(self, canvas: Canvas, sequence: Sequence, view: int) -> SequenceMemory:
        """Room for a whole canvas; with the prompt's whole blocks in it where an earlier request left them."""
        ids = [int(token) for token in canvas.ids[: canvas.low + 1]] if canvas.aligned and view == 0 else [canvas.mask]
        own = None if canvas.aligned and view == 0 else (sequence.uid, view)  # keys of a bidirectional canvas are of no use to others
        memory = self.memory.admit(ids, reserve=canvas.slots - len(ids), namespace=own)
        memory.truncate(memory.length // canvas.block * canvas.block if canvas.aligned else 0)
        memory.reserve(canvas.slots - memory.length)
        if view == 0:
            sequence.stats.cached_prompt_tokens = memory.length
        return memory

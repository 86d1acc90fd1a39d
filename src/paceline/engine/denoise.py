"""The denoising loop: look, forward, decide, emit finished blocks. Runner, memory, requests and outputs are those of the other loop."""

from __future__ import annotations

from collections.abc import Sequence as Many
from time import perf_counter

import numpy as np

from paceline.core.batch import ForwardBatch
from paceline.core.errors import UsageError
from paceline.core.request import FinishReason, Sequence
from paceline.core.verdict import Verdict
from paceline.denoising.canvas import Canvas
from paceline.denoising.denoiser import Denoiser, Task
from paceline.engine.emission import Detokenizer, Emission, cut
from paceline.engine.lifecycle import Clock, Lifecycle
from paceline.engine.runner import Runner
from paceline.memory.slots import SlotMemory
from paceline.scheduling.canvases import CanvasScheduler, Resident
from paceline.scheduling.continuous import SchedulerConfig


class DenoisingEngine(Lifecycle):
    """Runs answers of a masked diffusion model to their end. Every answer has its own block and step; one forward serves many.

    Args:
        runner: weights and memory.
        denoiser: what is computed, and what is decided.
        detokenizer: turns ids into text, where there is a tokenizer.
        config: limits of a step.
    """

    def __init__(self, runner: Runner, denoiser: Denoiser, detokenizer: Detokenizer | None, config: SchedulerConfig) -> None:
        super().__init__(runner, detokenizer)
        if not isinstance(runner.memory, SlotMemory):
            raise UsageError("masked diffusion models need batching='ragged': a canvas lives in token slots")
        self.denoiser, self.config = denoiser, config
        self.scheduler = CanvasScheduler(runner.memory, config, self._start, denoiser.views)

    def step(self) -> list[Emission]:
        """One forward for as many answers as fit in it."""
        clock = Clock(self.phases)
        turns = self.scheduler.turns()
        clock.lap("schedule")
        served: list[Resident] = []
        tasks: list[Task] = []
        rows = 0
        for resident in turns:
            task = self._task(resident)
            if tasks and rows + task.rows > self.config.max_rows:
                break
            served.append(resident)
            tasks.append(task)
            rows += task.rows
        if not tasks:
            return []
        batch = _batch(tasks, self.denoiser)
        clock.lap("assemble")
        result = self.runner.forward(batch)
        clock.lap("forward")
        decided_before = [task.canvas.committed for task in tasks]
        self.denoiser.absorb(tasks, result.logits)
        clock.lap("verify")
        for task, resident, before in zip(tasks, served, decided_before, strict=True):
            for look, memory in zip(task.looks, resident.memories, strict=False):  # a denoiser may leave the last memories out
                if look.keep:
                    memory.commit(range(look.keep))
            self._count(task, resident, prefill=not len(task.asked) and before == 0)
        self.scheduler.served(served)
        clock.lap("commit")
        emissions = [self._emit(resident) for resident in served]
        clock.lap("emit")
        self.phases.steps += 1
        return emissions

    def _start(self, sequence: Sequence) -> Canvas:
        sampling = sequence.request.sampling
        if sampling.uses_history:
            raise UsageError("penalties and no_repeat_ngram look at the tokens before a token; a diffusion model decides in no such order")
        if sampling.logprobs is not None:
            raise UsageError("sampling option logprobs is not available with diffusion models; leave it out")
        return self.denoiser.start(sequence.request, sequence.seed, self.context)

    def _release(self, active: Resident) -> None:
        self.scheduler.release(active)

    def _task(self, resident: Resident) -> Task:
        for memory in resident.memories:
            memory.reserve(resident.canvas.slots - memory.length)
        return self.denoiser.task(resident.canvas, resident.memories, resident.sequence.request.sampling, self.config.max_rows)

    def _count(self, task: Task, resident: Resident, prefill: bool) -> None:
        stats = resident.sequence.stats
        stats.prefill_forwards += prefill
        stats.forwards += not prefill
        stats.rows += task.rows
        resident.times.append(perf_counter() - self._arrived[resident.sequence.uid])

    def _emit(self, resident: Resident) -> Emission:
        """Output what has become a finished block, and end the sequence where it ends."""
        sequence, canvas = resident.sequence, resident.canvas
        filled = np.flatnonzero(canvas.decided == canvas.forwards)
        stream = self._streams.get(sequence.uid)
        tokens: tuple[int, ...] = ()
        ready = tuple(int(token) for token in canvas.ids[len(sequence.tokens) : canvas.low])
        if ready and resident.reason is None:
            tokens, resident.reason = cut(sequence, Verdict((), ready), self.eos, self.context, stream)
            sequence.tokens.extend(tokens)
        if canvas.finished or self.denoiser.stop.ends(resident.reason):
            self._finish(resident)
        text = "" if stream is None else stream.settled(final=sequence.finished)
        shown = tuple((int(at) - canvas.prompt, int(canvas.ids[at])) for at in filled)
        return Emission(sequence, tokens, 0, text, filled=shown)

    def _finish(self, resident: Resident) -> None:
        sequence, canvas = resident.sequence, resident.canvas
        self.scheduler.finish(resident)
        if not canvas.finished and self.eos:
            canvas.fill(self.runner.decoder.config.eos[0])
        sequence.finish_reason = resident.reason or FinishReason.LENGTH
        sequence.canvas = [int(token) for token in canvas.ids[canvas.prompt :]]
        # What each forward decided of the output; forwards that decided nothing of it show in the times alone.
        numbers = canvas.decided[canvas.prompt : len(sequence.tokens)]
        numbers = np.where(numbers < 1, canvas.forwards, numbers)  # left masked (compat)
        when, counts = np.unique(numbers, return_counts=True)
        sequence.stats.token_times = [resident.times[number - 1] for number in when]
        sequence.stats.token_counts = [int(count) for count in counts]
        self._forget(sequence)


def _batch(tasks: Many[Task], denoiser: Denoiser) -> ForwardBatch:
    """Flat rows of all looks; only rows that predict an asked position need logits."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for task in tasks:
        for index, look in enumerate(task.looks):
            wanted.extend(len(ids) + row for row in denoiser.logit_rows(task, index))
            ids.extend(denoiser.ids(task, index))
            positions.extend(look.positions)
    return ForwardBatch(ids, positions, [look.segment for task in tasks for look in task.looks], wanted)

"""Continuous batching: requests join and leave between forwards; prefill chunks share forwards with decoding rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.core.errors import CapacityError, UsageError
from paceline.core.request import Sequence
from paceline.memory.allocator import OutOfSlots
from paceline.memory.contract import SequenceStore, TokenMemory

LANE = 256  # slots; sequences of similar length get equal room


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step.

    Args:
        max_sequences: most sequences that run at once.
        max_rows: most rows of one forward; longer prompts are prefilled in chunks.

    Raises:
        UsageError: for a limit that lets nobody run.
    """

    max_sequences: int = 64
    max_rows: int = 512

    def __post_init__(self) -> None:
        for name, limit in (("max_sequences", self.max_sequences), ("max_rows", self.max_rows)):
            if limit < 1:
                raise UsageError(f"{name}={limit} must be at least 1")


@dataclass(slots=True, eq=False)
class Active:
    """A running sequence and its memory."""

    sequence: Sequence
    memory: SequenceStore

    @property
    def uncached(self) -> int:
        """Tokens that are output (or prompt) already but not in memory; the last of them is pending."""
        return len(self.sequence.tokens) - self.memory.length


@dataclass(frozen=True, slots=True)
class Turn:
    """A sequence's share of the next forward: `lead` committed tokens, and whether a tree is judged behind them."""

    active: Active
    lead: int
    decides: bool


class Scheduler:
    """Admission, chunking and preemption over one memory.

    Waiting sequences are admitted by priority, then arrival, when the memory is predicted to hold them to their end. The prediction
    may fail; then the latest, least important sequence is preempted and recomputed later. Its output does not change, because
    randomness is keyed by position.
    """

    def __init__(self, memory: TokenMemory, config: SchedulerConfig, on_preempt: Callable[[Sequence], None]) -> None:
        self.memory, self.config, self.on_preempt = memory, config, on_preempt
        self.waiting: list[Sequence] = []
        self.running: list[Active] = []
        self._expected_share = 1.0  # running mean of output length over its limit: how much of `max_tokens` requests really use

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            CapacityError: if it could not fit even alone.
        """
        limit = self.memory.total_slots
        if len(sequence.tokens) + 1 > limit:
            raise CapacityError(
                f"a prompt of {len(sequence.tokens)} tokens cannot fit the KV memory of {limit}; raise kv_tokens or shorten the prompt"
            )
        self.waiting.append(sequence)
        self.waiting.sort(key=_order)

    def remove(self, sequence: Sequence) -> Active | None:
        """Take a sequence out, running or waiting; its memory is the caller's to release."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return None
        for active in self.running:
            if active.sequence is sequence:
                self.running.remove(active)
                return active
        return None

    def finish(self, active: Active) -> None:
        """Release a finished sequence; its tokens stay behind as reusable prefix."""
        self.running.remove(active)
        sequence = active.sequence
        used = len(sequence.output) / sequence.request.max_tokens
        self._expected_share += 0.1 * (used - self._expected_share)
        active.memory.truncate(min(active.memory.length, len(sequence.tokens)))  # accepted tokens behind a cut never became output
        self.memory.release(active.memory, sequence.tokens[: active.memory.length])

    def turns(self) -> list[Turn]:
        """Admit what fits, then share the rows of the next forward: decoding sequences first, prompt chunks with what is left."""
        self._admit()
        rows = self.config.max_rows
        turns: list[Turn] = []
        for active in sorted(self.running, key=lambda active: active.uncached > 1):
            if rows <= 0:
                break
            lead = min(active.uncached - 1, rows)
            decides = lead == active.uncached - 1 and rows > lead
            if lead or decides:
                turns.append(Turn(active, lead, decides))
                rows -= lead + decides
        return turns

    def make_room(self, turn: Turn, rows: int) -> bool:
        """Reserve `rows` slots for a turn, preempting others if need be.

        Returns:
            Whether the turn may run; `False` if it was itself preempted.

        Raises:
            CapacityError: if the sequence alone does not fit.
        """
        while True:
            try:
                turn.active.memory.reserve(rows)
                return True
            except OutOfSlots:
                victim = max(self.running, key=lambda active: _order(active.sequence))
                if len(self.running) == 1:
                    raise CapacityError(
                        f"sequence of {len(turn.active.sequence.tokens)} tokens has outgrown the KV memory of "
                        f"{self.memory.total_slots} tokens; raise kv_tokens"
                    ) from None
                self._preempt(victim)
                if victim is turn.active:
                    return False

    def _preempt(self, active: Active) -> None:
        self.running.remove(active)
        self.memory.release(active.memory)
        active.sequence.stats.preemptions += 1
        self.on_preempt(active.sequence)
        self.waiting.append(active.sequence)
        self.waiting.sort(key=_order)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.config.max_sequences:
            sequence = self.waiting[0]
            predicted = self._predicted(sequence)
            if self.running and not self.memory.can_admit(predicted):
                break
            leader = self._leader(sequence)
            if leader is not None and leader.memory.length < sequence.prompt_length - 1:
                if not self._admit_next_stranger(leader):
                    break
                continue
            self.waiting.pop(0)
            self.running.append(Active(sequence, self._memory_for(sequence, leader)))

    def _predicted(self, sequence: Sequence) -> int:
        """Slots a sequence will need at its end."""
        return len(sequence.tokens) + int(self._expected_share * sequence.remaining) + 1

    def _room(self, sequence: Sequence) -> int:
        """Slots to ask for: where memory is plentiful, as many for everybody, so that sequences lie evenly spaced in the pools and
        attention can read all of them through one view."""
        everybody = [*(active.sequence for active in self.running), *self.waiting[: self.config.max_sequences], sequence]
        lane = -(-max(map(self._predicted, everybody)) // LANE) * LANE
        return lane if self.memory.can_admit(len(everybody) * lane) else self._predicted(sequence)

    def _admit_next_stranger(self, leader: Active) -> bool:
        """Let somebody else go first while samples of one prompt wait for the first of them to read it."""
        for at, sequence in enumerate(self.waiting):
            if sequence.request is not leader.sequence.request and self._leader(sequence) is None:
                self.waiting.insert(0, self.waiting.pop(at))
                return True
        return False

    def _leader(self, sequence: Sequence) -> Active | None:
        """Another running sample of the same request, whose prompt memory can be shared."""
        if sequence.request.sampling.n == 1:
            return None
        return next((active for active in self.running if active.sequence.request is sequence.request), None)

    def _memory_for(self, sequence: Sequence, leader: Active | None) -> SequenceStore:
        memory: SequenceStore
        if leader is None or sequence.output:
            memory = self.memory.admit(sequence.tokens, reserve=self._room(sequence) - len(sequence.tokens))
        else:
            memory = leader.memory.fork()
            memory.truncate(sequence.prompt_length - 1)
        sequence.stats.cached_prompt_tokens = max(sequence.stats.cached_prompt_tokens, memory.length)
        return memory


Former = Callable[[TokenMemory, SchedulerConfig, Callable[[Sequence], None]], Scheduler]


def _order(sequence: Sequence) -> tuple[int, int]:
    """Who comes first: larger priority, then earlier arrival."""
    return (-sequence.request.priority, sequence.uid)

"""The autoregressive loop: propose, forward, judge, commit, emit. Plain decoding is the same loop with empty drafts."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from time import perf_counter

from paceline.core.batch import ForwardBatch
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.core.work import Feed
from paceline.drafting.base import Drafter, DraftLimits
from paceline.engine.emission import Detokenizer, Emission, TextStream, cut
from paceline.engine.runner import Runner
from paceline.scheduling.continuous import Active, Scheduler, SchedulerConfig, Turn
from paceline.verification.verifier import Verifier

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


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the loop.

    Args:
        scheduler: batching limits.
        max_draft: most draft nodes per sequence and step, whatever a method asks for.
        coupled: judge sampled drafts with the random numbers of plain sampling, so that samples are token-identical to it.
    """

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    max_draft: int = 64
    coupled: bool = False


class Engine:
    """Runs sequences to their end, one step at a time.

    Args:
        runner: target weights and memory.
        drafter: who proposes.
        detokenizer: turns ids into text, where there is a tokenizer.
        config: limits.
    """

    def __init__(self, runner: Runner, drafter: Drafter, detokenizer: Detokenizer | None, config: EngineConfig) -> None:
        self.runner, self.drafter, self.detokenizer, self.config = runner, drafter, detokenizer, config
        self.verifier = Verifier(coupled=config.coupled)
        self.scheduler = Scheduler(runner.memory, config.scheduler, on_preempt=drafter.release)
        self.phases = Phases()
        decoder = runner.decoder.config
        self.eos, self.context = frozenset(decoder.eos), decoder.max_positions
        self._streams: dict[int, TextStream] = {}
        self._arrived: dict[int, float] = {}
        self._next_uid = 0

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
            self.runner.memory.release(active.memory, sequence.tokens[: active.memory.length])
            self.drafter.release(sequence)
        sequence.finish_reason = FinishReason.CANCELLED
        self._forget(sequence)

    def step(self) -> list[Emission]:
        """One forward for everybody whose turn it is."""
        clock = _Clock(self.phases)
        turns = self.scheduler.turns()
        clock.lap("schedule")
        trees = self._propose([turn for turn in turns if turn.decides])
        clock.lap("draft")
        feeds = self._reserve(turns, trees)
        if not feeds:  # the only turn was preempted for lack of room; whoever holds the room goes next
            return []
        batch = _assemble([feed for _, feed in feeds], self.drafter)
        clock.lap("assemble")
        result = self.runner.forward(batch)
        clock.lap("forward")
        judged = [(active, feed.tree) for active, feed in feeds if feed.tree is not None]
        sequences = [active.sequence for active, _ in judged]
        judged_trees = [tree for _, tree in judged]
        verdicts = self.verifier.judge(sequences, judged_trees, result.logits) if judged else []
        if judged and batch.taps.logits:  # before emission: the rows belong to the history that was judged
            result.taps.logits = self.verifier.processed(sequences, judged_trees, result.logits)
        clock.lap("verify")
        accepted = dict(zip((active.sequence.uid for active, _ in judged), verdicts, strict=True))
        for active, feed in feeds:
            verdict = accepted.get(active.sequence.uid)
            active.memory.commit(feed.kept_rows(verdict.accepted if verdict is not None else ()))
            active.sequence.stats.prefill_forwards += feed.tree is None or len(feed.lead) > 0
        clock.lap("commit")
        emissions = [self._emit(active, tree, verdict) for (active, tree), verdict in zip(judged, verdicts, strict=True)]
        if judged:  # a forward that only read prompts decided nothing
            self.drafter.observe(sequences, judged_trees, verdicts, result.taps)
        for active, _ in judged:
            if active.sequence.finished:
                self.scheduler.finish(active)
                self.drafter.release(active.sequence)
                self._forget(active.sequence)
        clock.lap("emit")
        self.phases.steps += 1
        return emissions

    def _propose(self, turns: Many[Turn]) -> dict[int, TokenTree]:
        """A tree for every sequence that decides in this step."""
        sequences = [turn.active.sequence for turn in turns]
        limits = [self._limits(turn) for turn in turns]
        trees = self.drafter.propose(sequences, limits) if sequences else []
        return {sequence.uid: tree for sequence, tree in zip(sequences, trees, strict=True)}

    def _limits(self, turn: Turn) -> DraftLimits:
        sequence = turn.active.sequence
        depth = min(sequence.remaining, self.context - len(sequence.tokens)) - 1  # the target adds one token of its own
        if depth <= 0 or (self.runner.exact is not None and turn.lead):
            return DraftLimits(0, 0)
        spare = self.runner.memory.free_slots - self.config.scheduler.max_sequences - turn.lead  # drafts never evict or preempt anybody
        nodes = max(0, min(self.config.max_draft, spare // max(1, len(self.scheduler.running))))
        return DraftLimits(nodes, min(depth, nodes))

    def _reserve(self, turns: Many[Turn], trees: dict[int, TokenTree]) -> list[tuple[Active, Feed]]:
        """Slots for every row; sequences preempted on the way drop out."""
        feeds: list[tuple[Active, Feed]] = []
        for turn in turns:
            active = turn.active
            if active not in self.scheduler.running:  # preempted by an earlier turn
                continue
            start = active.memory.length
            tokens = active.sequence.tokens[start : start + turn.lead]
            feed = Feed(active.memory, tokens, trees.get(active.sequence.uid) if turn.decides else None)
            if self.scheduler.make_room(turn, feed.rows):
                feeds.append((active, feed))
        return [(active, feed) for active, feed in feeds if active in self.scheduler.running]

    def _emit(self, active: Active, tree: TokenTree, verdict: Verdict) -> Emission:
        sequence = active.sequence
        stream = self._streams.get(sequence.uid)
        tokens, reason = cut(sequence, verdict, self.eos, self.context, stream)
        sequence.tokens.extend(tokens)
        sequence.finish_reason = reason
        drafted = min(len(verdict.accepted), len(tokens))
        stats = sequence.stats
        stats.record(max(tree.depth), len(tree) - 1, len(verdict.accepted))
        stats.token_times.append(perf_counter() - self._arrived[sequence.uid])
        stats.token_counts.append(len(tokens))
        text = "" if stream is None else stream.settled(final=reason is not None)
        return Emission(sequence, tokens, drafted, text, verdict.logprobs[: len(tokens)])

    def _forget(self, sequence: Sequence) -> None:
        self._streams.pop(sequence.uid, None)
        self._arrived.pop(sequence.uid, None)


class _Clock:
    """Adds the time since the last lap to a phase."""

    def __init__(self, phases: Phases) -> None:
        self.phases, self.last = phases, perf_counter()

    def lap(self, phase: str) -> None:
        now = perf_counter()
        self.phases.seconds[phase] += now - self.last
        self.last = now


def _assemble(feeds: Many[Feed], drafter: Drafter) -> ForwardBatch:
    """Flat rows of all feeds; only tree nodes need logits."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for feed in feeds:
        if feed.tree is not None:
            wanted.extend(range(len(ids) + len(feed.lead), len(ids) + feed.rows))
        ids.extend(feed.ids())
        positions.extend(feed.positions())
    return ForwardBatch(ids, positions, [feed.segment() for feed in feeds], wanted, taps=drafter.taps)

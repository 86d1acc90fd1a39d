"""The autoregressive loop: propose, forward, judge, commit, emit. Plain decoding is the same loop with empty drafts."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from time import perf_counter

from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import ForwardBatch
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.core.work import Feed
from paceline.drafting.base import Drafter, DraftLimits
from paceline.engine.emission import Detokenizer, Emission, cut
from paceline.engine.lifecycle import Clock, Lifecycle
from paceline.engine.runner import Runner
from paceline.scheduling.continuous import Active, Former, Scheduler, SchedulerConfig, Turn
from paceline.verification.verifier import Verifier


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the loop.

    Args:
        scheduler: batching limits.
        max_draft: most draft nodes per sequence and step, whatever a method asks for; `load` takes it from the method's options.
        coupled: judge sampled drafts with the random numbers of plain sampling, so that samples are token-identical to it.
    """

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    max_draft: int = 64
    coupled: bool = False


class Engine(Lifecycle):
    """Runs sequences to their end, one step at a time.

    Args:
        runner: target weights and memory.
        drafter: who proposes.
        detokenizer: turns ids into text, where there is a tokenizer.
        config: limits.
        former: makes the scheduler that forms batches; continuous batching by default.
        verifier: who judges; by default one that follows `config.coupled`.
    """

    def __init__(
        self,
        runner: Runner,
        drafter: Drafter,
        detokenizer: Detokenizer | None,
        config: EngineConfig,
        former: Former = Scheduler,
        verifier: Verifier | None = None,
    ) -> None:
        super().__init__(runner, detokenizer)
        self.drafter, self.config = drafter, config
        self.verifier = verifier if verifier is not None else Verifier(coupled=config.coupled)
        self.verifier.keeps = drafter.taps.likeliest
        self.scheduler = former(runner.memory, config.scheduler, drafter.release)

    def _release(self, active: Active) -> None:
        sequence = active.sequence
        self.runner.memory.release(active.memory, sequence.tokens[: active.memory.length])
        self.drafter.release(sequence)

    def step(self) -> list[Emission]:
        """One forward for everybody whose turn it is."""
        clock = Clock(self.phases)
        turns = self.scheduler.turns()
        clock.lap("schedule")
        if self.runner.sources is not None:
            self.runner.sources.attach(turn.active for turn in turns)
            clock.lap("forward")
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
        logits = result.logits[: sum(map(len, judged_trees))]
        verdicts = self.verifier.judge(sequences, judged_trees, logits) if judged else []
        if judged and batch.taps.logits:  # before emission: the rows belong to the history that was judged
            result.taps.logits = self.verifier.processed(sequences, judged_trees, logits)
        if judged and batch.taps.likeliest:
            result.taps.likeliest = self.verifier.likeliest()
        if batch.taps.prompt_logits:
            self._show_prompts(feeds, result.logits[len(logits) :])
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

    def _show_prompts(self, feeds: Many[tuple[Active, Feed]], logits: Float[Tensor, "leads vocabulary"]) -> None:
        """Hand the drafter what the target said at tokens that were read before a tree, processed as at the nodes of one."""
        start = 0
        for active, feed in feeds:
            if not feed.lead:
                continue
            first, stop = active.memory.length, start + len(feed.lead)
            then = replace(active.sequence, tokens=active.sequence.tokens[: first + 1])  # as it stood when the first of them was pending
            chain = TokenTree.chain(feed.lead[0], feed.lead[1:])
            processed = self.verifier.processed([then], [chain], logits[start:stop])
            self.drafter.observe_prompt(active.sequence, first, processed)  # type: ignore[attr-defined]  # its taps ask for it
            start = stop

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
            tree = trees.get(active.sequence.uid) if turn.decides else None
            feed = Feed(active.memory, tokens, tree, active.memory.cross)
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


def _assemble(feeds: Many[Feed], drafter: Drafter) -> ForwardBatch:
    """Flat rows of all feeds; only tree nodes need logits, and behind all of them the leads where the drafter asks for these."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    leads: list[int] = []
    for feed in feeds:
        if drafter.taps.prompt_logits:
            leads.extend(range(len(ids), len(ids) + len(feed.lead)))
        if feed.tree is not None:
            wanted.extend(range(len(ids) + len(feed.lead), len(ids) + feed.rows))
        ids.extend(feed.ids())
        positions.extend(feed.positions())
    return ForwardBatch(ids, positions, [feed.segment() for feed in feeds], [*wanted, *leads], taps=drafter.taps)

"""Trees of a shape fixed before anything is drawn, filled by a draft model layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import ROOT, Distribution, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftLimits, ForwardRunner
from paceline.drafting.draft_lanes import DraftLanes
from paceline.drafting.growth import Growth, draw_counters, draw_with_replacement, draw_without_replacement
from paceline.planning.static_tree import Shape


@dataclass(slots=True)
class Filling:
    """A tree on its way to a shape: `spot` is the place in the shape of each node that was drafted."""

    sequence: Sequence
    shape: Shape
    growth: Growth
    spot: list[int]


class StaticDrafter(ABC):
    """Fills a shape: draws, without replacement or with it, for a sampling target, the likeliest tokens for a greedy one.

    If samples are judged with the random numbers of plain sampling, it draws with these very numbers: where both models' laws are close,
    so are the tokens that one number picks from them. Such children count as chosen, which sample-and-match judges exactly whatever they
    are.
    """

    taps: TapRequest = NO_TAPS

    def __init__(
        self, runner: ForwardRunner, eos: frozenset[int], temperature: float, coupled: bool = False, replacement: bool = False
    ) -> None:
        """Args:
        runner: the draft model.
        eos: ids after which nothing is drafted.
        temperature: of the draft when the target samples; negative means the target's own.
        coupled: draw with the target's random numbers.
        replacement: draw siblings independently of each other, so that they may repeat; without effect on coupled draws.
        """
        self.runner, self.eos, self.temperature, self.coupled, self.replacement = runner, eos, temperature, coupled, replacement
        self._lanes = DraftLanes(runner)

    @abstractmethod
    def shape(self, limit: DraftLimits) -> Shape:
        """The shape to fill within the limits; one node asks for the empty draft."""

    @property
    def forwards(self) -> int:
        """Calls of the draft model so far."""
        return self._lanes.forwards

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Grow all trees together, one draft forward per depth."""
        fillings: dict[int, Filling] = {}
        for sequence, limit in zip(sequences, limits, strict=True):
            shape = self.shape(limit)
            if len(shape) > 1:
                fillings[sequence.uid] = Filling(sequence, shape, Growth([sequence.tokens[-1]], [-1], [0], [None]), [ROOT])
        while live := [filling for filling in fillings.values() if filling.growth.frontier]:
            logits = self._lanes.read([(each.sequence, each.growth, len(each.shape) - 1) for each in live])
            start = 0
            for filling in live:
                stop = start + len(filling.growth.frontier)
                self._branch(filling, logits[start:stop])
                start = stop
        return [self._finish(sequence, fillings.get(sequence.uid)) for sequence in sequences]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Keep the draft memory of what was accepted."""
        self._lanes.observe(sequences, verdicts)

    def release(self, sequence: Sequence) -> None:
        self._lanes.release(sequence)

    def memory_bytes(self) -> int:
        """Bytes of draft KV in use."""
        return self._lanes.memory_bytes()

    def _branch(self, filling: Filling, logits: Float[Tensor, "frontier vocabulary"]) -> None:
        """Children of every frontier node; those that have children themselves are the next frontier."""
        sequence, growth = filling.sequence, filling.growth
        sampling = sequence.request.sampling
        widths = [len(filling.shape[filling.spot[node]]) for node in growth.frontier]
        fresh: list[int] = []
        if sampling.greedy:
            most = min(max(widths), logits.shape[-1])
            best = logits.topk(most, -1).indices.tolist() if most > 1 else [[token] for token in logits.argmax(-1).tolist()]
            for node, tokens, width in zip(growth.frontier, best, widths, strict=True):
                fresh.extend(self._add(filling, tokens[:width], node))
        else:
            law = target_distribution(logits, self._draft_sampling(sampling)).double().cpu()
            for node, probs, width in zip(growth.frontier, law, widths, strict=True):
                position = len(sequence.tokens) + growth.depth[node]
                if self.coupled:
                    numbers = [uniform(sequence.seed, position, Purpose.TARGET)] * width
                else:
                    growth.q[node] = Distribution(probs)
                    counters = draw_counters(len(sequence.tokens), node, width)
                    numbers = [uniform(sequence.seed, position, Purpose.DRAFT, counter) for counter in counters]
                independent = self.replacement and not self.coupled
                drawn = draw_with_replacement(probs, numbers) if independent else draw_without_replacement(probs, width, numbers)
                fresh.extend(self._add(filling, drawn, node))
        growth.frontier = [node for node in fresh if growth.token[node] not in self.eos and filling.shape[filling.spot[node]]]

    @staticmethod
    def _add(filling: Filling, tokens: Many[int], parent: int) -> list[int]:
        below = filling.shape[filling.spot[parent]]
        filling.spot.extend(below[: len(tokens)])
        return [filling.growth.add(token, parent) for token in tokens]

    def _draft_sampling(self, sampling: Sampling) -> Sampling:
        """The target's transform without what depends on history, at the draft's temperature."""
        temperature = sampling.temperature if self.temperature < 0 else self.temperature
        return replace(
            sampling,
            temperature=temperature or sampling.temperature,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            no_repeat_ngram=0,
        )

    def _finish(self, sequence: Sequence, filling: Filling | None) -> TokenTree:
        if filling is None:
            self._lanes.keep(sequence, [])  # nothing was read for this step; the next draft catches up
            return TokenTree.chain(sequence.tokens[-1])
        tree, order = filling.growth.tree(not sequence.request.sampling.greedy, self.replacement)
        self._lanes.keep(sequence, [filling.growth.row[node] for node in order])
        return tree

"""Chains copied from the context or drafted by a model, of the size with the most expected tokens per second, down to none.

Each candidate token has an estimated probability of being accepted; those of one chain fall with depth. Sorting the candidates of all
sequences by that probability, the best m of them are always a valid set of chain prefixes, so the best step is
`argmax_m (sequences + sum of the m largest probabilities) / (cost of a forward with sequences + m rows)`.
Costs and acceptance are measured while running.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from time import perf_counter

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting import draft_model, iad, prompt_lookup
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.planning.cost import ForwardCost

CLEARLY = 1.02  # a larger draft must be better by this much: estimates are noisy
DOUBT = 16  # likely offers held back in a row, until they are sent although they seem too dear: the cost of rows may be misjudged
LIKELY = 0.5


@dataclass(frozen=True, slots=True)
class PlannedConfig:
    """Options of the planner.

    Args:
        lookup_length: longest copied draft.
        draft_length: longest draft of the draft model.
        memory: how many steps acceptance estimates remember; forgotten estimates return to an optimistic prior and are tried again.
    """

    lookup_length: int = 16
    draft_length: int = 6
    memory: int = 64


@dataclass(slots=True)
class Acceptance:
    """Estimated probability that a drafted token is accepted, given that the one before it was."""

    forget: float
    accepted: float = 1.5  # prior: worth a try
    offered: float = 2.0

    @property
    def rate(self) -> float:
        return self.accepted / self.offered

    def observe(self, offered: int, accepted: int) -> None:
        """A chain of `offered` tokens was accepted up to `accepted`: that many successes, and a failure if it is fewer."""
        self.accepted = self.accepted * self.forget + accepted
        self.offered = self.offered * self.forget + accepted + (accepted < offered)

    def drift(self) -> None:
        """A step without evidence: move towards the prior."""
        self.accepted += (1.5 - self.accepted) * (1 - self.forget)
        self.offered += (2.0 - self.offered) * (1 - self.forget)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one sequence could draft: tokens copied from its context, and the estimate they are judged by."""

    tokens: list[int]
    acceptance: Acceptance


@dataclass(slots=True)
class Pending:
    """What was proposed and when, until the verdicts arrive."""

    rows: int = 0
    sent: float = 0.0
    judged: dict[int, Acceptance] = field(default_factory=dict)


class Planned:
    """Chooses between copied text, the draft model if there is one, and nothing, sequence by sequence and step by step. One of the
    drafters that `auto` chooses from.

    Text is copied from the source, where an encoder-decoder reads one and the place in it is known (`iad`); else by prompt lookup.
    """

    Config = PlannedConfig
    taps: TapRequest = NO_TAPS

    def __init__(
        self, config: PlannedConfig, cost: ForwardCost, model: draft_model.DraftModel | None, source: iad.IAD | None = None
    ) -> None:
        self.config, self.cost, self.model, self.source = config, cost, model, source
        self.lookup = prompt_lookup.PromptLookup(prompt_lookup.PromptLookupConfig(length=config.lookup_length))
        forget = 1 - 1 / config.memory
        self._by_size = {size: Acceptance(forget) for size in range(5)}
        self._by_model, self._by_source = Acceptance(forget), Acceptance(forget)
        self._draft_seconds = 0.0  # per draft forward; zero until measured, so that the draft model is tried
        self._held = 0  # steps in a row with likely offers, none of them sent
        self._pending = Pending()

    @classmethod
    def build(cls, config: PlannedConfig, context: DraftContext) -> Planned:
        """A planner for this context; uses its draft runner if there is one."""
        model = None
        if context.draft is not None:
            model = draft_model.DraftModel.build(draft_model.DraftModelConfig(length=config.draft_length), context)
        cost = ForwardCost(context.probe)
        cost(1)  # probe while loading, not inside the first request
        source = iad.IAD.build(iad.IADConfig(), context) if context.vocabularies is None else None
        return cls(config, cost, model, source)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """The drafts with the best expected tokens per second."""
        offers = [self._offer(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]
        if self.model is None and not any(offer.tokens for offer in offers):
            return self._send([TokenTree.chain(sequence.tokens[-1]) for sequence in sequences], {})
        weak = [at for at, offer in enumerate(offers) if limits[at].depth > 0 and self._weaker(offer)] if self.model else []
        depth, floor = self._plan(offers, weak, limits)
        if not depth and floor >= 1.0 and any(offer.tokens and offer.acceptance.rate >= LIKELY for offer in offers):
            self._held += 1
            floor = LIKELY if self._held % DOUBT == 0 else floor
        else:
            self._held = 0
        judged: dict[int, Acceptance] = {}
        trees: list[TokenTree] = []
        for sequence, offer in zip(sequences, offers, strict=True):
            tokens = offer.tokens[: _prefix(offer.acceptance.rate, floor, len(offer.tokens))]
            if tokens:
                judged[sequence.uid] = offer.acceptance
            trees.append(TokenTree.chain(sequence.tokens[-1], tokens))
        if depth and self.model is not None:
            start, before = perf_counter(), self.model.forwards
            chosen = [replace(limits[at], depth=min(depth, limits[at].depth)) for at in weak]
            for at, tree in zip(weak, self.model.propose([sequences[at] for at in weak], chosen), strict=True):
                trees[at] = tree
                judged[sequences[at].uid] = self._by_model
            forwards = self.model.forwards - before
            if forwards:
                seconds = (perf_counter() - start) / forwards
                self._draft_seconds += (seconds - self._draft_seconds) * (0.1 if self._draft_seconds else 1.0)
        return self._send(trees, judged)

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Update cost and acceptance."""
        pending = self._pending
        if pending.rows == sum(len(tree) for tree in trees):  # nothing was preempted, no prompt shared the forward
            self.cost.observe(pending.rows, perf_counter() - pending.sent)
        seen: set[int] = set()
        for sequence, tree, verdict in zip(sequences, trees, verdicts, strict=True):
            acceptance = pending.judged.get(sequence.uid)
            if acceptance is not None and len(tree) > 1:
                acceptance.observe(len(tree) - 1, len(verdict.accepted))
                seen.add(id(acceptance))
        for acceptance in (*self._by_size.values(), self._by_model, self._by_source):
            if id(acceptance) not in seen:
                acceptance.drift()
        if self.model is not None:
            self.model.observe(sequences, trees, verdicts, taps)

    def release(self, sequence: Sequence) -> None:
        self.lookup.release(sequence)
        if self.source is not None:
            self.source.release(sequence)
        if self.model is not None:
            self.model.release(sequence)

    def memory_bytes(self) -> int:
        """Indices and draft KV."""
        return sum(part.memory_bytes() for part in (self.lookup, self.source, self.model) if part is not None)

    def _offer(self, sequence: Sequence, limit: DraftLimits) -> Offer:
        if self.source is not None and sequence.request.source:
            copied = self.source.draft(sequence, limit)
            if copied:
                return Offer(list(copied), self._by_source)
        length = min(self.config.lookup_length, limit.depth, limit.nodes)
        tokens, size = self.lookup.lookup(sequence, length) if length > 0 else ([], 0)
        return Offer(tokens, self._by_size[size])

    def _weaker(self, offer: Offer) -> bool:
        """Whether the draft model is expected to beat what could be copied."""
        return not offer.tokens or offer.acceptance.rate < self._by_model.rate

    def _plan(self, offers: list[Offer], weak: list[int], limits: Many[DraftLimits]) -> tuple[int, float]:
        """Depth of the draft model's chains, and the acceptance probability below which nothing is sent."""
        best, choice = 0.0, (0, 1.0)
        drafting = set(weak)
        for depth in range((self.config.draft_length if weak else 0) + 1):
            chances: list[float] = []
            for at, offer in enumerate(offers):
                modelled = depth > 0 and at in drafting
                rate = self._by_model.rate if modelled else offer.acceptance.rate
                count = min(depth, limits[at].depth) if modelled else len(offer.tokens)
                chances.extend(rate**power for power in range(1, count + 1))
            found, floor = self._best(len(offers), chances, depth * self._draft_seconds, best)
            if found == best and depth:
                break  # every further token of the model costs as much and is worth less
            if found > best:
                best, choice = found, (depth, floor)
        return choice

    def _best(self, roots: int, chances: list[float], draft_seconds: float, least: float) -> tuple[float, float]:
        """The most expected tokens per second, and the smallest chance then sent; `least` where nothing is clearly better than that."""
        chances.sort(reverse=True)
        gain, best, floor = float(roots), least, 1.0
        for sent in range(len(chances) + 1):
            if sent:
                gain += chances[sent - 1]
            rate = gain / (self.cost(roots + sent) + draft_seconds)
            if rate > best * CLEARLY:
                best, floor = rate, chances[sent - 1] if sent else 1.0
        return best, floor

    def _send(self, trees: list[TokenTree], judged: dict[int, Acceptance]) -> list[TokenTree]:
        self._pending = Pending(sum(len(tree) for tree in trees), perf_counter(), judged)
        return trees


def _prefix(rate: float, floor: float, length: int) -> int:
    """How many tokens of a chain have a chance of at least `floor`."""
    count, chance = 0, rate
    floor *= 1 - 1e-9  # powers and products round differently
    while count < length and chance >= floor:
        count, chance = count + 1, chance * rate
    return count

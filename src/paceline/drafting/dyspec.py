"""DySpec: a draft model's tree grows, per step and context, where verification is most likely to come by (arXiv 2410.11744).

Every child is drawn without replacement from the draft's distribution and judged in draw order against exactly that distribution, so
output is token-identical for a greedy target and distribution-identical for a sampling one, whatever budget, draft and temperature.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import USUAL_DRAFT, DraftContext, DraftLimits, ForwardRunner
from paceline.drafting.draft_lanes import DraftLanes
from paceline.drafting.dyspec_growth import Bounds, Grower, Pick, Urn, ValueGrowth, best_first, draft_odds, layered, seedling
from paceline.drafting.dyspec_learning import AcceptanceCurve, BudgetTuner, Threshold
from paceline.drafting.growth import draw_counters
from paceline.planning.cost import ForwardCost

LEAST_TEMPERATURE = 0.6  # of the draft, by default: a colder one starves siblings


@dataclass(frozen=True, slots=True)
class DySpecConfig:
    """Options of DySpec.

    Args:
        budget: nodes per tree, or `auto`: the number with the most expected tokens per second, from the measured cost of forwards.
        mode: `threshold` grows layer by layer, one draft forward each, as far as draws are worth `threshold`; `budget` takes the best
            draw each time until the budget is spent, one draft forward per node that gets children.
        threshold: least estimated probability that verification reaches a draw; 0 means 1 / budget.
        adaptive: let the threshold follow the sizes of past trees of the sequence.
        depth: longest path.
        temperature: of the draft; negative means the target's own, but at least 0.6.
        value: `draft` takes draft probabilities for acceptance probabilities; `calibrated` fits them to past steps.
        draws: for greedy targets, `likeliest`: children in order of draft probability; or `sampled`, as in the paper, which leaves some of
            them to chance. Sampling targets always get sampled ones.
    """

    budget: int | Literal["auto"] = 64
    mode: Literal["threshold", "budget"] = "threshold"
    threshold: float = 0.0
    adaptive: bool = True
    depth: int = 32
    temperature: float = -1.0
    value: Literal["draft", "calibrated"] = "draft"
    draws: Literal["sampled", "likeliest"] = "likeliest"

    def __post_init__(self) -> None:
        rules = {
            "budget": (self.budget == "auto" or self.budget >= 0, "an integer >= 0 or auto"),
            "threshold": (0.0 <= self.threshold < 1.0, "in [0, 1); 0 means 1 / budget"),
            "depth": (self.depth >= 0, "an integer >= 0"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"dyspec: {name}={getattr(self, name)!r} must be {wanted}")

    @property
    def most_draft(self) -> int:
        """Nodes of the largest draft."""
        return USUAL_DRAFT if self.budget == "auto" else self.budget


@dataclass(slots=True)
class Draft:
    """One tree of one step: its growth, the budget it grew under, and its nodes' growth indices in tree order once it stands."""

    growth: ValueGrowth
    grower: Grower
    budget: int
    room: int
    temperature: float
    order: list[int] = field(default_factory=list)


class DySpec:
    """Grows trees by estimated value with a second decoder."""

    Config = DySpecConfig
    taps: TapRequest = NO_TAPS

    def __init__(self, config: DySpecConfig, runner: ForwardRunner, eos: frozenset[int], tuner: BudgetTuner | None = None) -> None:
        self.config, self.runner, self.eos, self.tuner = config, runner, eos, tuner
        self.curve = AcceptanceCurve()
        self.steps = self.nodes = 0  # trees drafted, and nodes in them
        self._lanes = DraftLanes(runner)
        self._thresholds: dict[int, tuple[int, Threshold]] = {}  # by sequence, with the budget each is for
        self._drafts: dict[int, Draft] = {}

    @classmethod
    def build(cls, config: DySpecConfig, context: DraftContext) -> DySpec:
        """A drafter over the context's draft runner; with `budget=auto`, target and draft forwards are timed now.

        Raises:
            UsageError: if the user named no draft model.
        """
        if context.draft is None:
            raise UsageError("method 'dyspec' needs a draft model; name one with draft=... (--draft)")
        tuner = None
        if config.budget == "auto":
            target, draft = ForwardCost(context.probe), ForwardCost(context.draft.probe)
            target(1), draft(1)  # probe while loading, not inside the first request
            tuner = BudgetTuner(target, draft, layered=config.mode == "threshold")
        return cls(config, context.draft, context.eos, tuner)

    @property
    def forwards(self) -> int:
        """Calls of the draft model so far."""
        return self._lanes.forwards

    @property
    def calls_per_tree(self) -> float:
        """Draft forwards per drafted tree: what to weigh against the tokens a tree brings. Batched trees share forwards."""
        return self.forwards / self.steps if self.steps else 0.0

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Grow all trees together: every draft forward serves all that wait for one."""
        most = max((limit.nodes for limit in limits), default=0)
        budget = self.tuner.choose(len(sequences), most) if self.tuner is not None and most else self.config.budget
        waiting: list[tuple[Sequence, Draft]] = []
        for sequence, limit in zip(sequences, limits, strict=True):
            room, depth = min(int(budget), limit.nodes) if budget != "auto" else 0, min(self.config.depth, limit.depth)
            if room > 0 and depth > 0:
                draft = self._drafts[sequence.uid] = self._sow(sequence, int(budget), Bounds(room, depth, self.eos))
                draft.growth.frontier = next(draft.grower)
                waiting.append((sequence, draft))
            else:
                self._drafts.pop(sequence.uid, None)
        while waiting:
            laws = self._laws(waiting)
            waiting = [each for each, law in zip(waiting, laws, strict=True) if self._advance(*each, law)]
        return [self._finish(sequence) for sequence in sequences]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Keep the draft memory of what was accepted; learn how good the estimates were."""
        self._lanes.observe(sequences, verdicts)
        for sequence, tree, verdict in zip(sequences, trees, verdicts, strict=True):
            draft = self._drafts.pop(sequence.uid, None)
            if draft is None or len(tree) != len(draft.order):
                continue
            growth = draft.growth
            if self.tuner is not None:
                self.tuner.observe(growth.parent, growth.depth, growth.estimates, len(verdict.accepted))
            if self.config.value == "calibrated":
                self._calibrate(tree, verdict, draft)

    def release(self, sequence: Sequence) -> None:
        self._lanes.release(sequence)
        self._thresholds.pop(sequence.uid, None)
        self._drafts.pop(sequence.uid, None)

    def memory_bytes(self) -> int:
        """Bytes of draft KV in use."""
        return self._lanes.memory_bytes()

    def _sow(self, sequence: Sequence, budget: int, bounds: Bounds) -> Draft:
        """A tree about to grow."""
        growth = seedling(sequence.tokens[-1])
        sampling = sequence.request.sampling
        pick = _likeliest if sampling.greedy and self.config.draws == "likeliest" else _sampled(sequence)
        odds = self.curve if self.config.value == "calibrated" else draft_odds
        if self.config.mode == "budget":
            grower = best_first(growth, bounds, pick, odds)
        else:
            grower = layered(growth, bounds, self._threshold(sequence, budget).value, pick, odds)
        temperature = self.config.temperature if self.config.temperature >= 0 else max(sampling.temperature, LEAST_TEMPERATURE)
        return Draft(growth, grower, budget, bounds.nodes, temperature)

    def _threshold(self, sequence: Sequence, budget: int) -> Threshold:
        """The sequence's threshold for this budget."""
        before, threshold = self._thresholds.get(sequence.uid, (budget, None))
        if threshold is None:
            threshold = Threshold(self.config.threshold or 1.0 / budget, self.config.adaptive)
        elif before != budget and not self.config.threshold:
            threshold.rescale(before, budget)
        self._thresholds[sequence.uid] = (budget, threshold)
        return threshold

    def _laws(self, waiting: Many[tuple[Sequence, Draft]]) -> list[Float[Tensor, "frontier vocabulary"]]:
        """Draft distributions behind every frontier, at each sequence's draft temperature; nothing else is applied to the draft."""
        logits = self._lanes.read([(sequence, draft.growth, draft.room) for sequence, draft in waiting])
        parts = logits.split([len(draft.growth.frontier) for _, draft in waiting])
        if len({draft.temperature for _, draft in waiting}) == 1:
            law = target_distribution(logits, Sampling(temperature=waiting[0][1].temperature))
            return list(law.to("cpu", torch.float64).split([len(part) for part in parts]))
        laws = [target_distribution(part, Sampling(temperature=draft.temperature)) for part, (_, draft) in zip(parts, waiting, strict=True)]
        return [law.to("cpu", torch.float64) for law in laws]

    def _advance(self, sequence: Sequence, draft: Draft, law: Float[Tensor, "frontier vocabulary"]) -> bool:
        """Let a tree grow as far as these laws take it; whether it wants more."""
        try:
            draft.growth.frontier = draft.grower.send(law)
        except StopIteration as end:
            if sequence.uid in self._thresholds and draft.room == draft.budget:  # a tree cut by its step's limits says nothing
                self._thresholds[sequence.uid][1].observe(int(end.value), draft.budget)
            return False
        return True

    def _finish(self, sequence: Sequence) -> TokenTree:
        draft = self._drafts.get(sequence.uid)
        if draft is None:
            self._lanes.keep(sequence, [])  # nothing was read for this step; the next draft catches up
            return TokenTree.chain(sequence.tokens[-1])
        tree, draft.order = draft.growth.tree(sampled=not sequence.request.sampling.greedy)
        self._lanes.keep(sequence, [draft.growth.row[node] for node in draft.order])
        self.steps += 1
        self.nodes += draft.growth.drafted
        return tree

    def _calibrate(self, tree: TokenTree, verdict: Verdict, draft: Draft) -> None:
        """Every draw that was judged: rejected siblings and accepted nodes along the path, rejected ones at its end."""
        children, growth = tree.children(), draft.growth
        for node, chosen in zip((ROOT, *verdict.accepted), (*verdict.accepted, None), strict=True):
            for child in children[node]:
                drawn = draft.order[child]
                self.curve.observe(growth.share[drawn], growth.rank[drawn], child == chosen)
                if child == chosen:
                    break


def _sampled(sequence: Sequence) -> Pick:
    """Draws by the sequence's own numbers, one per node and step."""
    step, seed = len(sequence.tokens), sequence.seed

    def pick(growth: ValueGrowth, node: int, urn: Urn) -> int:
        (counter,) = draw_counters(step, len(growth.token), 1)  # keyed by the new node, of which there is one per draw
        return urn.sample(uniform(seed, step + growth.depth[node], Purpose.DRAFT, counter))

    return pick


def _likeliest(growth: ValueGrowth, node: int, urn: Urn) -> int:
    """Children in order of probability: chosen, not drawn, hence for greedy targets only."""
    return urn.likeliest()

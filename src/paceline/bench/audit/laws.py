"""The law of sampled output on toy models: enumerated exactly where the rule is a pure function, counted over seeds for whole engines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch

from paceline.attention.plan import Exactness
from paceline.bench.audit.rules import EngineRule, Law, Opening
from paceline.core.batch import ForwardBatch, Segment
from paceline.core.request import Request
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.engine.loop import Engine
from paceline.engine.runner import make_runner
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder

Tokens = tuple[int, ...]
LawOf = Callable[[Tokens], Law]
SMALLEST_CELL = 5.0  # cells of a chi-square test that expect fewer counts are pooled


def law_of_model(decoder: Decoder, prompt: Tokens, sampling: Sampling, exact: Exactness | None = None) -> LawOf:
    """Next-token law of a decoder after the prompt and some output, in float64, by a forward of its own per context."""

    @cache
    def law(output: Tokens) -> Law:
        ids = [*prompt, *output]
        runner = make_runner(decoder, slots=len(ids) + 1, ledger=Ledger(), exact=exact, prefix_cache=False)
        memory = runner.memory.admit(ids)
        memory.reserve(len(ids))
        batch = ForwardBatch(ids, range(len(ids)), [Segment(memory, len(ids))], [len(ids) - 1])
        return target_distribution(runner.forward(batch).logits.double(), sampling)[0]

    return law


def plain_law(law: LawOf, vocabulary: int, length: int) -> dict[Tokens, float]:
    """Probability of every output of `length` tokens under plain sampling."""
    table = {}
    for tokens in product(range(vocabulary), repeat=length):
        mass = 1.0
        for at, token in enumerate(tokens):
            mass *= float(law(tokens[:at])[token])
        table[tokens] = mass
    return table


@dataclass(frozen=True, slots=True)
class Family:
    """How the children of a node come about and how they are judged.

    Args:
        rule: of a node.
        widths: children per node, by depth.
        replacement: siblings are drawn with replacement.
        chosen: children are the likeliest tokens of the draft rather than draws.
        claimed: chosen children are judged as if drawn (a fault).
        draft_at_leaves: the rule is told the draft's law where there are no children too.
    """

    rule: Opening = EngineRule.open
    widths: tuple[int, ...] = (1,)
    replacement: bool = False
    chosen: bool = False
    claimed: bool = False
    draft_at_leaves: bool = False


def speculative_law(target: LawOf, draft: LawOf, length: int, family: Family) -> dict[Tokens, float]:
    """Exact law of the first `length` tokens when every step drafts such a tree.

    Every order of draws and every acceptance is enumerated; nothing is sampled. A tree is judged along one path only, and the subtrees
    of siblings are independent, so the recursion follows accepted children alone. Tokens behind the step come from the next step.
    """

    @cache
    def step(output: Tokens, depth: int) -> dict[Tokens, float]:
        found: defaultdict[Tokens, float] = defaultdict(float)
        left = length - len(output)
        if left == 0:
            return {(): 1.0}
        width = family.widths[depth] if depth < len(family.widths) and left > 1 else 0  # as the loop limits drafts
        if width == 0:
            known = draft(output) if family.draft_at_leaves and depth else None
            _spread(found, family.rule(target(output), known, family.replacement).law(), 1.0, lambda token: step((*output, token), 0))
            return dict(found)
        q = draft(output)
        for children, chance in _siblings(q, width, family):
            rule = family.rule(target(output), None if family.chosen and not family.claimed else q, family.replacement)
            remaining = chance
            for token in children:
                accept = min(1.0, rule.offer(token))
                for tail, mass in step((*output, token), depth + 1).items():
                    found[(token, *tail)] += remaining * accept * mass
                remaining *= 1 - accept
                if remaining <= 0.0:
                    break
                rule = rule.rejected(token)
            if remaining > 0.0:
                _spread(found, rule.law(), remaining, lambda token: step((*output, token), 0))
        return dict(found)

    return step((), 0)


def _spread(found: defaultdict[Tokens, float], law: Law, mass: float, tails: Callable[[int], Mapping[Tokens, float]]) -> None:
    """Add the outcomes of one token drawn from a law and whatever follows it."""
    for token, chance in enumerate(law.tolist()):
        if chance > 0.0:
            for tail, more in tails(token).items():
                found[(token, *tail)] += mass * chance * more


def _siblings(q: Law, width: int, family: Family) -> Iterator[tuple[Tokens, float]]:
    """Every ordered set of children, with its probability."""
    if family.chosen:
        yield tuple(q.topk(width).indices.tolist()), 1.0
        return
    probs: list[float] = q.tolist()

    def grow(drawn: Tokens, chance: float) -> Iterator[tuple[Tokens, float]]:
        left = 1.0 if family.replacement else 1.0 - sum(probs[token] for token in drawn)
        if len(drawn) == width or left <= 1e-15:
            yield drawn, chance
            return
        for token, mass in enumerate(probs):
            if mass > 0.0 and (family.replacement or token not in drawn):
                yield from grow((*drawn, token), chance * mass / left)

    yield from grow((), 1.0)


def distance(one: Mapping[Tokens, float], other: Mapping[Tokens, float]) -> float:
    """Total variation distance."""
    return 0.5 * sum(abs(one.get(tokens, 0.0) - other.get(tokens, 0.0)) for tokens in {*one, *other})


def count_outputs(engine: Engine, prompt: Tokens, sampling: Sampling, length: int, samples: int, seed: int) -> Counter[Tokens]:
    """Outputs of an engine for many seeds, batched as the engine likes."""
    sequences = []
    for index in range(samples):
        seeded = Sampling(
            temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p, seed=key(seed, index)
        )
        sequences += engine.submit(Request(prompt, seeded, max_tokens=length, ignore_eos=True))
    while not engine.idle:
        engine.step()
    return Counter(tuple(sequence.output) for sequence in sequences)


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """Pearson's test of counts against a law.

    Args:
        statistic, freedom: of the test. p_value: probability of a larger statistic if the law is right.
        cells: after pooling.
    """

    statistic: float
    freedom: int
    p_value: float
    cells: int


def chi_square(counts: Mapping[Tokens, int], law: Mapping[Tokens, float]) -> ChiSquare:
    """Test counts against a law. An output that the law forbids gives a p-value of zero."""
    total = sum(counts.values())
    observed: list[float] = []
    expected: list[float] = []
    pool_observed = pool_expected = 0.0
    impossible = any(law.get(tokens, 0.0) <= 0.0 for tokens, count in counts.items() if count)
    for tokens, mass in law.items():
        want, got = mass * total, counts.get(tokens, 0)
        if want < SMALLEST_CELL:
            pool_expected, pool_observed = pool_expected + want, pool_observed + got
        else:
            expected.append(want)
            observed.append(got)
    if pool_expected > 0.0:
        expected.append(pool_expected)
        observed.append(pool_observed)
    statistic = sum((got - want) ** 2 / want for got, want in zip(observed, expected, strict=True))
    freedom = max(1, len(expected) - 1)
    tail = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64))
    return ChiSquare(statistic, freedom, 0.0 if impossible else float(tail), len(expected))

"""What every sampling drafter rests on: the acceptance of one draw, chains, draws with and without replacement, numerics, streams."""

from __future__ import annotations

from math import isfinite

import pytest
import torch
from law_enumeration import PROMPT, Trees, best_first, distance_to_plain, first_two, fixed_shape, second_order, verdict_law
from table_laws import DRAFT, TARGET, deviation

from paceline.bench.chains import TableRunner, simulate
from paceline.core.errors import PacelineError
from paceline.core.request import Request, Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.drafting import dyspec
from paceline.drafting.base import DraftLimits
from paceline.drafting.draft_model import DraftModel, DraftModelConfig
from paceline.drafting.dyspec import DySpec, DySpecConfig
from paceline.drafting.dyspec_growth import Pick, Urn, ValueGrowth
from paceline.verification.rejection import Opening
from paceline.verification.verifier import Verifier

V = 3
P, Q = second_order(V, seed=2), second_order(V, seed=11)
FLAT_P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
FLAT_Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
RATE = 0.7  # sum of min(p, q) of the two
MANY = DraftLimits(64, 64)


def member(seed: int = 0) -> Sequence:
    return Sequence(0, Request(PROMPT, Sampling(temperature=1.0, seed=seed), max_tokens=40))


@pytest.mark.parametrize("seed", range(4))
def test_one_draw_is_accepted_with_the_mass_both_laws_share(seed: int) -> None:
    """1 - TV(p, q), for the one-node tree that a DySpec budget of 1 gives."""
    p, q = second_order(V, seed=50 + seed), second_order(V, seed=60 + seed)
    accepted = 0.0
    for tree, probability in best_first(q, 1):
        for tokens, weight in verdict_law(tree, p, Verifier()).items():
            accepted += probability * weight * (len(tokens) > 1)
    assert accepted == pytest.approx(torch.minimum(p(PROMPT), q(PROMPT)).sum().item(), abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_tokens_of_a_chain(length: int) -> None:
    """(1 - a^(k+1)) / (1 - a), the bonus behind a fully accepted chain included."""
    found = 0.0
    for tree, probability in fixed_shape(lambda history: FLAT_Q, (1,) * length, False):
        for tokens, weight in verdict_law(tree, lambda history: FLAT_P, Verifier()).items():
            found += probability * weight * len(tokens)
    assert found == pytest.approx((1 - RATE ** (length + 1)) / (1 - RATE), abs=1e-12)


def test_without_replacement_more_is_accepted() -> None:
    rates = {}
    for replacement in (True, False):
        drafter = DraftModel(DraftModelConfig(2, "3x2", replacement=replacement), TableRunner(DRAFT), frozenset())
        rates[replacement] = simulate(TARGET, drafter, Sampling(temperature=1.0, seed=5), tokens=400, sequences=10).tokens_per_call
    assert rates[False] > rates[True] + 0.05


def trees_of(replacement: bool) -> list[TokenTree]:
    drafter = DraftModel(DraftModelConfig(2, "3x2", replacement=replacement), TableRunner(DRAFT), frozenset())
    return [drafter.propose([member(seed)], [MANY])[0] for seed in range(40)]


def test_independent_draws_repeat_and_say_so() -> None:
    for replacement in (True, False):
        repeated = 0
        for tree in trees_of(replacement):
            assert tree.proposal is not None
            assert tree.proposal.replacement is replacement
            for children in tree.children():
                tokens = [tree.token[child] for child in children]
                assert not children or len(children) in (2, 3)
                repeated += len(set(tokens)) < len(tokens)
        assert (repeated > 10) is replacement


def test_independent_draws_have_the_drafts_law() -> None:
    """Each sibling by itself, the last one too."""
    law = DRAFT[PROMPT].softmax(-1)
    drafter = DraftModel(DraftModelConfig(1, "3", replacement=True), TableRunner(DRAFT), frozenset())
    counts = torch.zeros(3, len(law), dtype=torch.float64)
    for seed in range(1500):
        (tree,) = drafter.propose([member(seed)], [MANY])
        for rank in range(3):
            counts[rank, tree.token[1 + rank]] += 1
    statistic = ((counts - 1500 * law) ** 2 / (1500 * law)).sum(-1)
    assert float(statistic.max()) < 35  # chi-square with 5 degrees of freedom: once in 600,000


def test_catches_independent_draws_that_are_judged_as_distinct_ones() -> None:
    """Negative control: a repeated sibling has no probability left in the law without replacement, and the verifier says so."""
    tree = next(tree for tree in trees_of(True) if len({tree.token[child] for child in tree.children()[0]}) == 1)
    assert tree.proposal is not None
    undeclared = TokenTree(tree.token, tree.parent, Proposal(tree.proposal.q, replacement=False))
    never = torch.full((len(tree), 6), 0.0, dtype=torch.float64)
    never[:, tree.token[1]] = -50.0  # the first of the siblings is rejected
    with pytest.raises(PacelineError, match="draw no token twice"):
        Verifier().judge([member()], [undeclared], never)
    (verdict,) = Verifier().judge([member()], [tree], never)
    assert verdict.accepted == ()


def test_catches_repetitions_that_are_dropped() -> None:
    """Negative control: a repeated sibling is always rejected, and yet it must be judged, for the residual it leaves."""

    def deduplicated() -> Trees:
        for tree, probability in fixed_shape(Q, (3,), True):
            assert tree.proposal is not None
            different = list(dict.fromkeys(tree.token[1:]))
            yield TokenTree((tree.token[0], *different), (-1, *[0] * len(different)), tree.proposal), probability

    assert distance_to_plain(first_two(fixed_shape(Q, (3,), True), P, Verifier()), P, V) < 1e-12
    assert distance_to_plain(first_two(deduplicated(), P, Verifier()), P, V) > 1e-3


@pytest.mark.parametrize("replacement", [True, False])
def test_where_the_draft_is_the_target_nothing_becomes_nan(replacement: bool) -> None:
    """R - D is zero everywhere: R stays, whatever is rejected by rounding."""
    law = torch.softmax(torch.randn(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 0)
    odds = Opening((law,), (Distribution(law),), (replacement,))
    assert odds.offer([2]) == [pytest.approx(1)]
    after = odds.rejected([2])
    torch.testing.assert_close(after.residual[0] / after.residual_mass[0], law)
    assert isfinite(after.offer([3])[0])


def test_the_law_reported_is_the_very_one_drawn_from() -> None:
    """Not a copy in another type: float64, of mass one, at every node with children."""
    for mode in ("threshold", "budget"):
        drafter = DySpec(DySpecConfig(budget=24, mode=mode), TableRunner(DRAFT.float()), frozenset())
        (tree,) = drafter.propose([member(3)], [MANY])
        growth = drafter._drafts[0].growth
        assert tree.proposal is not None
        assert {id(law.probs) for law in tree.proposal.q.values()} == {id(law.probs) for law in growth.q.values()}
        for law in tree.proposal.q.values():
            assert law.probs.dtype is torch.float64
            assert float(law.probs.sum()) == pytest.approx(1, abs=1e-6)


def test_catches_a_law_recomputed_in_half_precision() -> None:
    """Negative control: too little for counting to see, plain in an enumeration."""

    def rounded() -> Trees:
        for tree, probability in best_first(Q, 3):
            assert tree.proposal is not None
            laws = {node: Distribution(law.probs.bfloat16().double()) for node, law in tree.proposal.q.items()}
            yield TokenTree(tree.token, tree.parent, Proposal(laws)), probability

    assert distance_to_plain(first_two(best_first(Q, 3), P, Verifier()), P, V) < 1e-12
    assert distance_to_plain(first_two(rounded(), P, Verifier()), P, V) > 1e-5


def test_catches_draws_and_acceptance_from_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the number that picked a token also decides on it."""

    def shared(sequence: Sequence) -> Pick:
        def pick(growth: ValueGrowth, node: int, urn: Urn) -> int:
            return urn.sample(uniform(sequence.seed, len(sequence.tokens) + growth.depth[node], Purpose.ACCEPT, urn.drawn))

        return pick

    def text() -> list[list[int]]:
        drafter = DySpec(DySpecConfig(budget=6), TableRunner(DRAFT), frozenset())
        return simulate(TARGET, drafter, Sampling(temperature=1.0, seed=70), tokens=100, sequences=60).output

    law = TARGET.softmax(-1)
    assert abs(deviation(text(), 100, law)) < 5
    monkeypatch.setattr(dyspec, "_sampled", shared)
    assert deviation(text(), 100, law) > 5

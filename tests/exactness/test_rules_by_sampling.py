"""The verifier with its own random numbers: chi-square of pairs of output tokens against the target's law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from law_enumeration import second_order, without

from paceline.core.request import Request, Sequence
from paceline.core.rng import Purpose, uniform
from paceline.core.sampling import Sampling
from paceline.core.transform import draw
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.verification import rows
from paceline.verification.rows import TreeRows
from paceline.verification.verifier import Rule, Verifier

V = 8
PROMPT = (0, 1)
P = second_order(V, seed=4)
Q = second_order(V, seed=5)
MODEL = {(a, b): P((a, b)).log() for a in range(V) for b in range(V)}  # logits after the last two tokens
BATCH = 5_000

Drafter = Callable[[Sequence], TokenTree]


def logits_of(tree: TokenTree, node: int, tokens: list[int]) -> torch.Tensor:
    history = [*tokens, *(tree.token[below] for below in tree.path(node))]
    return MODEL[history[-2], history[-1]]


def pairs(drafter: Drafter, rule: Rule, count: int) -> Counter[tuple[int, ...]]:
    """The first two output tokens of `count` requests that differ in their seed only."""
    verifier = Verifier(rule)
    seen: Counter[tuple[int, ...]] = Counter()
    for first in range(0, count, BATCH):
        live = [Sequence(seed, Request(PROMPT, Sampling(temperature=1.0, seed=seed))) for seed in range(first, min(first + BATCH, count))]
        everyone = live
        while live:
            trees = [drafter(sequence) for sequence in live]
            logits = [
                logits_of(tree, node, sequence.tokens) for sequence, tree in zip(live, trees, strict=True) for node in range(len(tree))
            ]
            for sequence, verdict in zip(live, verifier.judge(live, trees, torch.stack(logits)), strict=True):
                sequence.tokens.extend(verdict.tokens)
            live = [sequence for sequence in live if len(sequence.output) < 2]
        seen.update(tuple(sequence.output[:2]) for sequence in everyone)
    return seen


def deviation(seen: Counter[tuple[int, ...]], p: Callable[[tuple[int, ...]], torch.Tensor] = P) -> float:
    """Chi-square of the 64 pairs against plain sampling, in standard deviations above its mean."""
    count = sum(seen.values())
    expected = {(a, b): count * (p(PROMPT)[a] * p((1, a))[b]).item() for a in range(V) for b in range(V)}
    statistic = sum((seen[pair] - mean) ** 2 / mean for pair, mean in expected.items())
    freedom = V * V - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def fixed_tree(sequence: Sequence) -> TokenTree:
    """A deterministic function of the history."""
    return _tree_after(sequence.tokens[-1])


@cache
def _tree_after(last: int) -> TokenTree:
    return TokenTree.from_paths(last, [[last, 3], [(last + 1) % V, 0], [(last + 1) % V, 5], [0]])


def drawn_chain(sequence: Sequence) -> TokenTree:
    """Two tokens drawn one after the other from the draft source."""
    position, history = len(sequence.tokens), list(sequence.tokens)
    laws = []
    for depth in range(2):
        laws.append(Q(tuple(history)))
        history += draw(laws[-1].unsqueeze(0), [uniform(sequence.seed, position, Purpose.DRAFT, depth)])
    proposal = Proposal({depth: Distribution(law) for depth, law in enumerate(laws)})
    return TokenTree.chain(sequence.tokens[-1], history[-2:], proposal)


def drawn_siblings(sequence: Sequence) -> TokenTree:
    """Three children of the root, drawn without replacement."""
    law = rest = Q(tuple(sequence.tokens))
    tokens: list[int] = []
    for rank in range(3):
        tokens += draw(rest.unsqueeze(0), [uniform(sequence.seed, len(sequence.tokens), Purpose.DRAFT, rank)])
        rest = without(rest, tokens[-1])
    return TokenTree((sequence.tokens[-1], *tokens), (-1, 0, 0, 0), Proposal({0: Distribution(law)}))


@pytest.fixture(scope="module")
def matched() -> Counter[tuple[int, ...]]:
    return pairs(fixed_tree, "match", 100_000)


def test_sample_and_match_follows_the_law(matched: Counter[tuple[int, ...]]) -> None:
    assert abs(deviation(matched)) < 5


def test_matched_output_is_that_of_plain_sampling() -> None:
    assert pairs(fixed_tree, "match", 3_000) == pairs(lambda sequence: TokenTree.chain(sequence.tokens[-1]), "match", 3_000)


@pytest.mark.parametrize("drafter", [drawn_chain, drawn_siblings, fixed_tree])
def test_rejection_follows_the_law(drafter: Drafter) -> None:
    assert abs(deviation(pairs(drafter, "rejection", 6_000))) < 5


def test_catches_a_slightly_different_law(matched: Counter[tuple[int, ...]]) -> None:
    """Negative control: the test has the power to see five percent of another source mixed in."""
    assert deviation(matched, lambda history: 0.95 * P(history) + 0.05 * Q(history)) > 5


def test_catches_drafts_that_share_the_verifiers_numbers() -> None:
    """Negative control: drawing drafts from the ACCEPT stream correlates them with their own acceptance."""

    def correlated(sequence: Sequence) -> TokenTree:
        law = Q(tuple(sequence.tokens))
        tokens = draw(law.unsqueeze(0), [uniform(sequence.seed, len(sequence.tokens), Purpose.ACCEPT)])
        return TokenTree.chain(sequence.tokens[-1], tokens, Proposal({0: Distribution(law)}))

    assert deviation(pairs(correlated, "rejection", 6_000)) > 5


def test_catches_a_residual_drawn_with_the_acceptance_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    right = TreeRows.uniform

    def wrong(rows: TreeRows, row: int, purpose: Purpose, draw: int = 0) -> float:
        return right(rows, row, Purpose.ACCEPT if purpose is Purpose.RESIDUAL else purpose, draw)

    monkeypatch.setattr(TreeRows, "uniform", wrong)
    assert deviation(pairs(drawn_chain, "rejection", 6_000)) > 5


@pytest.mark.parametrize("drafter", [drawn_chain, drawn_siblings, fixed_tree])
def test_no_number_decides_twice(drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings, levels and steps of a sequence all use numbers of their own; correlations too faint for chi-square would still bias."""
    used: list[tuple[int, ...]] = []

    def spy(seed: int, position: int, purpose: Purpose, draw: int = 0) -> float:
        used.append((seed, position, purpose, draw))
        return uniform(seed, position, purpose, draw)

    monkeypatch.setattr(rows, "uniform", spy)
    pairs(drafter, "rejection", 200)
    assert len(set(used)) == len(used) > 400

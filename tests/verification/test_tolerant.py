"""The tolerance rule: what greedy sequences whose tree carries one accept, against the rule as it is written down."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.errors import PacelineError
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.tolerance import Tolerance
from paceline.core.tree import TokenTree
from paceline.verification.verifier import Verifier

LOGITS = st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=6, max_size=6), min_size=2, max_size=6)


def by_the_page(draft: Many[int], rows: Many[Many[float]], beta: int, tau: float) -> list[int]:
    """Slot j is accepted iff D_j is among the beta largest of row j and at most tau below the largest; ties by lowest id."""
    out: list[int] = []
    for token, row in zip(draft, rows, strict=False):
        order = sorted(range(len(row)), key=lambda other: (-row[other], other))
        if token not in order[:beta] or (beta > 1 and row[order[0]] - row[token] > tau):
            return [*out, order[0]]
        out.append(token)
    last = rows[len(draft)]
    return [*out, min(range(len(last)), key=lambda other: (-last[other], other))]


def judged(draft: Many[int], rows: Many[Many[float]], tolerance: Tolerance | None, sampling: Sampling | None = None) -> list[int]:
    running = Sequence(0, Request((1,), sampling=sampling or Sampling()))
    tree = TokenTree.chain(1, list(draft), tolerance=tolerance)
    (verdict,) = Verifier().judge([running], [tree], torch.tensor(rows)[: len(tree)])
    assert verdict.accepted == tuple(range(1, len(verdict.tokens)))
    return list(verdict.tokens)


@given(LOGITS, st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0, inf]))
def test_the_rule_is_the_pages(rows: list[list[float]], draft: list[int], beta: int, tau: float) -> None:
    draft = draft[: len(rows) - 1]
    assert judged(draft, rows, Tolerance(beta, tau)) == by_the_page(draft, rows, beta, tau)


@given(LOGITS, st.lists(st.integers(0, 5), min_size=1, max_size=5), st.sampled_from([0.0, 1.0, inf]))
def test_beta_one_is_exact_matching(rows: list[list[float]], draft: list[int], tau: float) -> None:
    """With ties everywhere: ranking and argmax must break them alike."""
    draft = draft[: len(rows) - 1]
    assert judged(draft, rows, Tolerance(1, tau)) == judged(draft, rows, None)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(2, 6))
def test_no_tolerance_of_logits_is_exact_matching_up_to_ties(seed: int, draft: list[int], beta: int) -> None:
    rows = torch.randn(len(draft) + 1, 6, generator=torch.Generator().manual_seed(seed)).tolist()
    assert judged(draft, rows, Tolerance(beta, 0.0)) == judged(draft, rows, None)


@given(LOGITS, st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_full_tolerance_accepts_the_whole_block(rows: list[list[float]], draft: list[int]) -> None:
    draft = draft[: len(rows) - 1]
    best = rows[len(draft)]
    assert judged(draft, rows, Tolerance(6, inf)) == [*draft, best.index(max(best))]


@given(
    LOGITS,
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0, inf]), st.sampled_from([0.0, 0.5, 1.0, 3.0, inf])).map(sorted),
)
def test_more_tolerance_never_accepts_less(rows: list[list[float]], draft: list[int], betas: list[int], taus: list[float]) -> None:
    """Of one draft; what the quality curve of beta and tau rises on."""
    draft = draft[: len(rows) - 1]
    strict, lenient = (judged(draft, rows, Tolerance(beta, tau)) for beta, tau in zip(betas, taus, strict=True))
    assert len(strict) <= len(lenient)
    assert strict[:-1] == lenient[: len(strict) - 1]


def test_a_tie_rule_of_its_own_would_be_noticed() -> None:
    """Negative control: of two equal logits a `topk` may return the higher id first; at beta 1 that alone breaks identity."""
    rows = [[1.0, 2.0, 2.0, 0.0, 0.0, 0.0], [0.0] * 6]
    assert judged([2], rows, Tolerance(1)) == [1]
    assert judged([2], rows, Tolerance(2, 0.0)) == [2, 0]


def test_samples_take_no_notice() -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).tolist()
    sampling = Sampling(temperature=1.0, seed=3)
    assert judged([1, 2, 3], rows, Tolerance(6, inf), sampling) == judged([1, 2, 3], rows, None, sampling)


def test_banned_tokens_are_not_tolerated() -> None:
    sampling = Sampling(logit_bias={2: -inf})
    assert judged([2], [[1.0, 2.0, 3.0, 0.0, 0.0, 0.0], [0.0] * 6], Tolerance(6, 5.0), sampling) == [1]


def test_broken_logits_are_an_error() -> None:
    with pytest.raises(PacelineError, match="not finite"):
        judged([2, 2], [[0.0] * 6, [float("nan")] * 6, [0.0] * 6], Tolerance(6, inf))


def test_tolerant_and_exact_sequences_share_a_step() -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]] * 2)
    trees = [TokenTree.chain(1, [1], tolerance=Tolerance(2, 1.0)), TokenTree.chain(1, [1])]
    running = [Sequence(at, Request((1,))) for at in range(2)]
    assert [verdict.tokens for verdict in Verifier().judge(running, trees, rows)] == [(1, 2), (2,)]


def test_of_several_tolerable_children_the_likeliest_is_followed() -> None:
    tree = replace(TokenTree.from_paths(1, [[3], [4], [5, 2]]), tolerance=Tolerance(6, inf))
    rows = torch.zeros(len(tree), 6)
    rows[0, 5] = 1.0
    rows[3, 2] = 1.0
    (verdict,) = Verifier().judge([Sequence(0, Request((1,)))], [tree], rows)
    assert verdict.tokens == (5, 2, 0)

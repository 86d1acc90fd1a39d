"""Drafters by themselves: what they propose, and that they respect limits and forget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.batch import Taps
from paceline.core.errors import UsageError
from paceline.core.registry import METHODS, parse
from paceline.core.request import Request, Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.compose import Compose, follow, merge
from paceline.drafting.draft_model import DraftModel, DraftModelConfig
from paceline.drafting.growth import draw_without_replacement
from paceline.drafting.planned import DOUBT, Acceptance, Planned, PlannedConfig
from paceline.drafting.prompt_lookup import NgramIndex, PromptLookup, PromptLookupConfig
from paceline.planning.cost import ForwardCost

MANY = DraftLimits(64, 64)


def sequence(tokens: list[int], uid: int = 0) -> Sequence:
    return Sequence(uid, Request(tuple(tokens), max_tokens=100))


def proposed(drafter: object, tokens: list[int], limit: DraftLimits = MANY) -> list[int]:
    (tree,) = drafter.propose([sequence(tokens)], [limit])  # type: ignore[attr-defined]
    assert tree.token[0] == tokens[-1]
    return list(tree.token[1:])


def test_lookup_copies_what_followed_the_longest_suffix() -> None:
    tokens = [1, 2, 3, 4, 9, 9, 2, 3, 7, 8, 1, 2, 3]
    assert proposed(PromptLookup(PromptLookupConfig(length=3)), tokens) == [4, 9, 9]  # (1, 2, 3) beats the later (2, 3)
    assert proposed(PromptLookup(PromptLookupConfig(length=3, max_ngram=2)), tokens) == [7, 8, 1]  # the latest occurrence wins
    assert proposed(PromptLookup(PromptLookupConfig(length=3)), [1, 2, 3, 4]) == []


def test_lookup_continues_a_period_past_the_end() -> None:
    assert proposed(PromptLookup(PromptLookupConfig(length=7)), [5, 6, 7, 5, 6, 7, 5, 6]) == [7, 5, 6, 7, 5, 6, 7]


def test_lookup_treats_id_zero_like_any_other() -> None:
    assert proposed(PromptLookup(PromptLookupConfig(length=2)), [0, 0, 5, 0, 0]) == [5, 0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8))
def test_index_grown_in_steps_equals_search_from_scratch(tokens: list[int], length: int) -> None:
    index = NgramIndex(range(1, 4))
    for end in range(1, len(tokens) + 1):
        index.extend(tokens[:end])
    found, size = index.continuation(tokens, length)
    expected: tuple[list[int], int] = ([], 0)
    for n in (3, 2, 1):
        ends = [end for end in range(n, len(tokens)) if tokens[end - n : end] == tokens[-n:]]
        if ends:
            text = list(tokens)
            while len(text) < len(tokens) + length:
                text.append(text[ends[-1] + len(text) - len(tokens)])
            expected = (text[len(tokens) :], n)
            break
    assert (found, size) == expected


@pytest.mark.parametrize("limit", [DraftLimits(0, 0), DraftLimits(3, 64), DraftLimits(64, 2)])
def test_lookup_respects_limits_and_forgets(limit: DraftLimits) -> None:
    drafter = PromptLookup(PromptLookupConfig(length=10))
    draft = proposed(drafter, [1, 2, 3, 1, 2, 3, 1, 2], limit)
    assert len(draft) <= min(limit.nodes, limit.depth)
    drafter.release(sequence([1]))
    assert drafter.memory_bytes() == 0


def test_merge_shares_prefixes_and_keeps_the_first_drafters_branches() -> None:
    a, b = TokenTree.chain(9, [1, 2, 3]), TokenTree.chain(9, [1, 5])
    tree = merge([a, b], 10)
    assert {tuple(tree.token[n] for n in tree.path(node)) for node in range(1, len(tree))} == {(1,), (1, 2), (1, 2, 3), (1, 5)}
    assert merge([a, b], 3) == a
    assert follow(b, [1, 2]) == (1,)
    assert follow(b, [1, 5, 7]) == (1, 2)


def test_compose_tells_each_part_how_far_its_own_branch_went() -> None:
    heard: list[tuple[int, ...]] = []

    class Fixed(PromptLookup):
        def __init__(self, draft: list[int]) -> None:
            super().__init__(PromptLookupConfig())
            self.draft = draft

        def propose(self, sequences, limits):  # type: ignore[no-untyped-def]
            return [TokenTree.chain(member.tokens[-1], self.draft) for member in sequences]

        def observe(self, sequences, trees, verdicts, taps) -> None:  # type: ignore[no-untyped-def]
            heard.append(verdicts[0].accepted)

    both = Compose([Fixed([1, 2, 3]), Fixed([1, 5])])
    member = sequence([9])
    (tree,) = both.propose([member], [MANY])
    path = follow(tree, [1, 5])
    both.observe([member], [tree], [Verdict(path, (1, 5, 6))], Taps())
    assert heard == [(1,), (1, 2)]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_draws_without_replacement_are_distinct_and_possible(weights: list[float], count: int, random) -> None:  # type: ignore[no-untyped-def]
    total = sum(weights)
    if total == 0:
        return
    probs = torch.tensor(weights, dtype=torch.float64) / total
    tokens = draw_without_replacement(probs, count, [random.random() for _ in range(count)])
    assert len(set(tokens)) == len(tokens) == min(count, int((probs > 0).sum()))
    assert all(probs[token] > 0 for token in tokens)


def test_draft_model_without_a_model_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="--draft"):
        DraftModel.build(DraftModelConfig(), DraftContext(10, frozenset(), lambda rows: 1.0))


@pytest.mark.parametrize("text", ["draft-model:branching=3x0", "draft-model:branching=wide", "prompt-lookup:min_ngram=5,max_ngram=2"])
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=text.split(":")[0]):
        parse(text)[0].config()


def test_every_registered_method_has_a_config_and_a_builder() -> None:
    for method in METHODS:
        kind = method.load()
        kind.Config()
        assert callable(kind.build)


class GivenCost(ForwardCost):
    """A cost that is not measured."""

    def observe(self, rows: int, seconds: float) -> None:
        pass


def planned(cost: dict[int, float] | None = None) -> Planned:
    table = cost or {}
    return Planned(PlannedConfig(), GivenCost(lambda rows: table.get(rows, 1.0)), None)


def test_planner_drafts_when_rows_are_free_and_stops_when_they_are_not() -> None:
    copied = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert len(proposed(planned(), copied)) > 2
    dear = {size: float(size) for size in range(1, 129)}  # every row costs a whole forward
    assert proposed(planned(dear), copied) == []


def test_planner_puts_costs_that_seem_too_dear_to_the_test_now_and_then() -> None:
    """Probing may have been disturbed; a size that is never sent would stay misjudged for ever."""
    drafter = planned({size: float(size) for size in range(1, 129)})
    member = sequence([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])
    sent = [step for step in range(1, 4 * DOUBT + 1) if len(drafter.propose([member], [MANY])[0]) > 1]
    assert sent == [DOUBT, 2 * DOUBT, 3 * DOUBT, 4 * DOUBT]


def test_planner_learns_that_copies_are_rejected_and_tries_again_later() -> None:
    cost = {size: 1 + 0.3 * (size - 1) for size in range(1, 129)}
    drafter = planned(cost)
    member = sequence([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2])
    sizes = []
    for _ in range(400):
        (tree,) = drafter.propose([member], [MANY])
        sizes.append(len(tree) - 1)
        drafter.observe([member], [tree], [Verdict((), (7,))], Taps())
    assert sizes[0] > 0
    assert sum(size == 0 for size in sizes) > 300
    assert any(sizes[50:])


def test_acceptance_counts_one_failure_per_chain() -> None:
    estimate = Acceptance(forget=1.0, accepted=0.0, offered=0.0)
    estimate.observe(5, 2)
    assert estimate.rate == pytest.approx(2 / 3)
    estimate.observe(2, 2)
    assert estimate.rate == pytest.approx(4 / 5)

"""Lookahead as a drafter: what it learns, what it forgets, what it sends, and the reference's mistakes it must not repeat."""

from __future__ import annotations

from itertools import pairwise

import pytest
from lookahead_games import VOCABULARY, cycle, drafted, lookahead, paths, play

from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.rng import key
from paceline.drafting.base import DraftLimits
from paceline.drafting.lookahead.select import Selection, side_by_side
from paceline.drafting.lookahead.trie import Forest
from paceline.verification.walk import follow


@pytest.mark.parametrize("length", [3, 7, 12])
@pytest.mark.parametrize("mode", ["hier_mix", "par_output", "one_output", "one_mix"])
@pytest.mark.parametrize("tokens", [40, 41, 66])
def test_a_warm_replay_needs_no_forward_too_many(length: int, mode: str, tokens: int) -> None:
    drafter = lookahead(branch_length=length, mode=mode)
    _, cold = play(drafter, [5, 18], tokens, cycle)
    _, warm = play(drafter, [5, 18], tokens, cycle)
    assert len(cold) == tokens  # nothing repeats within the answer
    assert len(warm) == -(-tokens // (length + 1))  # the prompt's forward drafts too, which the page's count leaves out


@pytest.mark.parametrize("options", [{"decoding_length": 1}, {"branch_length": 0}])
@pytest.mark.parametrize("store", ["trie", "table"])
def test_no_rows_or_no_depth_is_plain_decoding(options: dict[str, int], store: str) -> None:
    drafter = lookahead(store=store, **options)
    for _ in range(2):
        _, trees = play(drafter, [5, 18, 5, 18], 30, cycle)
        assert [len(tree) for tree in trees] == [1] * 30


def test_an_empty_forest_drafts_nothing() -> None:
    assert len(drafted(lookahead(), [1, 2, 3])) == 1


def test_prompts_are_released_and_outputs_stay() -> None:
    drafter = lookahead()
    sequence, trees = play(drafter, [1, 2, 3, 4, 1, 2], 3, lambda tokens: 7)
    assert (3, 4) in paths(trees[0])
    assert all(len(drafted(drafter, [9, token])) == 1 for token in (1, 3, 4))  # nobody else sees the prompt
    assert paths(drafted(drafter, [9, 2])) == {(7,), (7, 7), (7, 7, 7)}  # but the answer, from the border on
    store = drafter.stores[""]
    assert isinstance(store, Forest)
    assert {token for root in store.trees for token, parent, _ in store.nodes(root) if parent >= 0} == {7}
    assert sequence.uid not in drafter._rows


def test_answers_that_others_drafted_are_learned_too() -> None:
    """As under `auto`, while another drafter is the faster one."""
    drafter = lookahead()
    sequence = Sequence(0, Request((5, 18), max_tokens=30))
    while sequence.remaining > 0:
        sequence.tokens.append(cycle(sequence.tokens))
    drafter.release(sequence)
    assert len(drafter.stores) == 0, "not while it may go on"
    sequence.finish_reason = FinishReason.LENGTH
    drafter.release(sequence)
    _, trees = play(drafter, [5, 18], 30, cycle)
    assert len(trees) < 10


def test_id_zero_is_like_any_other() -> None:
    drafter = lookahead()
    drafter.learn([4, 0, 5, 0, 0, 6])
    tree = drafted(drafter, [4, 0])
    assert tree.token[0] == 0
    assert (5, 0, 0, 6) in paths(tree)


def test_end_of_sequence_is_never_drafted_and_does_not_hide_the_rest_of_a_prompt() -> None:
    drafter = lookahead(eos=(9,))
    tree = drafted(drafter, [1, 2, 9, 3, 4, 5, 9, 3])
    assert paths(tree) == {(4,), (4, 5)}
    drafter.learn([7, 8, 9, 7, 6])
    assert paths(drafted(drafter, [7])) == {(8,), (6,)}
    play(drafter, [50], 6, lambda tokens: 9 if len(tokens) == 3 else 60 + len(tokens))
    assert all(9 not in path for path in paths(drafted(drafter, [61])))
    assert paths(drafted(drafter, [64])) == {(65,), (65, 66)}


def test_the_longer_suffix_wins_and_a_smaller_result_never_replaces_a_larger_one() -> None:
    drafter = lookahead(branch_length=3)
    drafter.learn([1, 2, 3, 4, 5, 6])
    drafter.learn([8, 2, 7])
    assert paths(drafted(drafter, [1, 2])) == {(3,), (3, 4), (3, 4, 5)}  # full length: the shorter suffix is not asked
    assert (7,) in paths(drafted(drafter, [9, 2]))
    assert (3, 4, 5) in paths(drafted(drafter, [8, 2]))  # (7,) alone is smaller than what follows 2 anywhere


def test_stop_words_are_no_query_by_themselves_and_root_nothing() -> None:
    drafter = lookahead(stop_words="2x3")
    drafter.learn([1, 2, 5, 6, 2, 7])
    assert len(drafted(drafter, [9, 2])) == 1
    assert paths(drafted(drafter, [1, 2])) == {(5,), (5, 6), (5, 6, 2), (5, 6, 2, 7)}
    assert 2 not in drafter.stores[""].trees  # type: ignore[union-attr]
    assert paths(drafted(drafter, [2, 40, 41, 2, 40])) == {(41,), (41, 2), (41, 2, 40)}  # in prompts they do


def test_trees_are_accepted_at_least_as_much_as_branches_side_by_side_and_these_as_one_branch() -> None:
    """At equal decoding_length, warm, on text where every token has a few likely continuations."""
    target = lambda answer: lambda tokens: 10 * (len(tokens) % 15) + key(answer, len(tokens)) % 3  # noqa: E731
    steps = {}
    for shape in ("hier", "par", "one"):
        drafter = lookahead(mode=f"{shape}_output", branch_length=6, decoding_length=16)
        for answer in range(30):
            play(drafter, [7], 45, target(answer))
        steps[shape] = sum(len(play(drafter, [7], 45, target(answer))[1]) for answer in range(100, 110))
    assert steps["hier"] < steps["par"] < steps["one"] < 450


def test_tenants_never_see_one_another() -> None:
    drafter = lookahead()
    play(drafter, [5], 20, cycle, tenant="a")
    assert len(drafted(drafter, [5], tenant="b")) == 1
    assert len(drafted(drafter, [5])) == 1
    assert len(drafted(drafter, [5], tenant="a")) > 10


def test_the_tenant_unused_longest_is_forgotten() -> None:
    drafter = lookahead(max_scopes=2)
    for tenant in ("a", "b"):
        play(drafter, [5], 20, cycle, tenant=tenant)
    drafted(drafter, [5], tenant="a")
    play(drafter, [5], 20, cycle, tenant="c")
    assert set(drafter.stores) == {"a", "c"}


@pytest.mark.parametrize("mode", ["hier_mix", "hier_input", "hier_output", "par_mix", "one_mix", "one_input", "one_output"])
def test_sources(mode: str) -> None:
    drafter = lookahead(mode=mode)
    drafter.learn([1, 20, 21])
    found = {path[0] for path in paths(drafted(drafter, [1, 30, 31, 1]))}
    shape, _, source = mode.partition("_")
    expected = {"mix": {20, 30}, "input": {30}, "output": {20}}[source]
    assert found == ({30} if (shape, source) == ("one", "mix") else expected)  # the prompt ranks first


@pytest.mark.parametrize("mode", ["hier_mix", "par_mix", "one_mix"])
@pytest.mark.parametrize("store", ["trie", "table"])
@pytest.mark.parametrize("limit", [DraftLimits(5, 64), DraftLimits(64, 2), DraftLimits(0, 0)])
def test_limits_hold(mode: str, store: str, limit: DraftLimits) -> None:
    drafter = lookahead(mode=mode, store=store, decoding_length=20)
    for first in range(20):
        drafter.learn([1, 2, first, *range(first, first + 30)])
    tree = drafted(drafter, [1, 2], limit.nodes, limit.depth)
    assert len(tree) - 1 <= min(limit.nodes, 19)
    assert max(tree.depth) <= min(limit.depth, 12)
    assert (len(tree) > 1) == (limit.depth > 0)


@pytest.mark.parametrize(("batch", "each"), [(1, 64), (4, 16), (16, 4), (40, 1)])
def test_a_batch_shares_the_rows_once(batch: int, each: int) -> None:
    drafter = lookahead()
    for first in range(30):
        drafter.learn([1, *range(first, first + 20)])
    sequences = [Sequence(uid, Request((1,))) for uid in range(batch)]
    trees = drafter.propose(sequences, [DraftLimits(64, 64)] * batch)
    assert [len(tree) for tree in trees] == [each] * batch


def test_preemption_counts_nothing_twice() -> None:
    whole, broken = lookahead(), lookahead()
    play(whole, [5], 60, cycle)
    sequence, _ = play(broken, [5], 30, cycle, finish=False)
    broken.release(sequence)  # preempted
    assert not broken._rows
    more = Sequence(sequence.uid, Request((5,), max_tokens=60), tokens=sequence.tokens)
    broken._preempted[more] = broken._preempted.pop(sequence)
    while more.remaining:
        broken.propose([more], [DraftLimits(0, 0)])
        more.tokens.append(cycle(more.tokens))
    more.finish_reason = FinishReason.LENGTH
    broken.release(more)
    first, second = ({root: store.nodes(root) for root in store.trees} for store in (whole.stores[""], broken.stores[""]))  # type: ignore[union-attr]
    assert first == second
    assert max(tree[0][2] for tree in first.values()) == 1


def test_what_was_learned_is_drafted_from_at_once() -> None:
    drafter = lookahead()
    drafter.learn(list(range(100)))
    assert (1, 2, 3) in paths(drafted(drafter, [0]))
    assert (99,) in paths(drafted(drafter, [98]))


def test_large_trees_are_squeezed_when_a_request_ends() -> None:
    drafter = lookahead(max_output_node=30, squeeze_after=1)
    for first in range(20):
        play(drafter, [1], 20, lambda tokens, first=first: (tokens[-1] * 7 + first) % VOCABULARY)  # type: ignore[misc]
        store = drafter.stores[""]
        assert isinstance(store, Forest)
        assert not store.changed
        assert store.trees
        assert all(len(store.nodes(root)) <= 1 + 30 for root in store.trees)
    free = lookahead(squeeze_after=10**6)
    for first in range(20):
        play(free, [1], 20, lambda tokens, first=first: (tokens[-1] * 7 + first) % VOCABULARY)  # type: ignore[misc]
    store = free.stores[""]
    assert isinstance(store, Forest)
    assert max(len(store.nodes(root)) for root in store.trees) > 1 + 30  # so there was something to squeeze


def test_side_by_side_branches_are_accepted_like_the_tree() -> None:
    forest = Forest(4)
    for text in ([1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7], [1, 8, 9]):
        forest.add(tuple(text), 0, 1)
    picked = Selection()([1], None, forest, 64, 4)
    tree, flat = picked.tree(1), side_by_side(picked, 1000).tree(1)
    assert len(flat) > len(tree)
    for wanted in ([2, 3, 4, 0], [2, 5, 6, 0], [2, 5, 7, 0], [2, 5, 0], [8, 9, 0], [3], [2, 0]):

        def accepted(draft, wanted=wanted):  # type: ignore[no-untyped-def]
            return follow(draft, [wanted[min(depth, len(wanted) - 1)] for depth in draft.depth])

        nodes, tokens = accepted(tree)
        flat_nodes, flat_tokens = accepted(flat)
        assert tokens == flat_tokens
        assert len(nodes) == len(flat_nodes)
        assert all(flat.parent[below] == above for above, below in pairwise((0, *flat_nodes)))  # one branch, not pieces of two


def test_output_too_young_to_be_inserted_is_found_by_its_last_two_tokens() -> None:
    loop = lambda tokens: 10 + len(tokens) % 4  # noqa: E731
    _, trees = play(lookahead(), [5], 40, loop)
    assert len(trees) < 11  # the loop is copied as soon as it closes, long before a whole branch of it is known
    assert drafted(lookahead(eos=(12,)), [5, 10, 11, 12, 13, 10, 11], prompt=1).token == (11,)  # and never across an end


def test_what_a_request_answered_itself_ranks_with_its_prompt() -> None:
    """Others went on differently, and more often; their outputs only fill up what is left."""
    drafter = lookahead(mode="one_mix", branch_length=3)
    for _ in range(5):
        drafter.learn([1, 2, 90, 91, 92, 93])
    answer = [1, 2, 30, 31, 32, 33, 34, 35, 36, 7, 2, 30, 31, 32, 33]
    _, trees = play(drafter, [5], len(answer), lambda tokens: answer[min(len(tokens) - 1, len(answer) - 1)])
    again = [tree for tree in trees if tree.token[0] == 2][-1]
    assert again.token == (2, 30, 31, 32)


@pytest.mark.parametrize(
    "text",
    [
        "lookahead:decoding_length=0",
        "lookahead:mode=wide_mix",
        "lookahead:stop_words=a",
        "lookahead:store=table,mode=hier_input",
        "lookahead:output_weight=2",
        "lookahead:reserve_output=0.7,reserve_input=0.7",
    ],
)
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="lookahead"):
        parse(text)[0].config()

"""Laws of the tries: counts, order of insertion, squeezing, and that selection finds what the thresholds of the paper would."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lookahead_games import lookahead, play

from paceline.core.rng import key
from paceline.drafting.lookahead.select import Picked, Selection, side_by_side
from paceline.drafting.lookahead.trie import LITTLE, Forest, segments

TEXTS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=6)


def grown(texts: list[list[int]], depth: int = 4) -> Forest:
    forest = Forest(depth)
    for text in texts:
        forest.add(tuple(text), 0, len(text))
    return forest


def counts(forest: Forest) -> dict[tuple[int, ...], float]:
    """Frequency of every path, roots first."""
    found: dict[tuple[int, ...], float] = {}
    for root in forest.trees:
        path: list[tuple[int, ...]] = []
        for token, parent, count in forest.nodes(root):
            path.append((*(path[parent] if parent >= 0 else ()), token))
            assert path[-1] not in found
            if parent >= 0:
                found[path[-1]] = count
    return found


def best_first(forest: Forest, token: int, budget: int, depth: int) -> Picked:
    return Selection()([token], None, forest, budget, depth)


@given(TEXTS)
def test_every_ngram_is_counted_once_per_occurrence(texts: list[list[int]]) -> None:
    expected: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        for at in range(len(text)):
            for length in range(2, 6):
                if at + length <= len(text):
                    expected[tuple(text[at : at + length])] += 1
    forest = grown(texts)
    assert counts(forest) == expected


@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_every_ngram_of_a_streamed_answer_is_counted_once(length: int, seed: int) -> None:
    """However many tokens a step brings and wherever pieces end: from the last prompt token on, and never across an end of sequence."""
    drafter = lookahead(eos=(9,), branch_length=length, max_query=2)
    expected: Counter[tuple[int, ...]] = Counter()
    steps = 0
    for answer in range(3):
        prompt = [20 + answer, 30 + answer, 5]
        sequence, trees = play(drafter, prompt, 41, lambda tokens: (0, 1, 2, 5, 9)[key(seed, *tokens[-2:]) % 5])
        steps += len(trees)
        for _, segment in segments(sequence.tokens[len(prompt) - 1 :], frozenset({9})):
            for at in range(len(segment)):
                for stop in range(at + 2, min(at + length + 2, len(segment)) + 1):
                    expected[segment[at:stop]] += 1
    store = drafter.stores[""]
    assert isinstance(store, Forest)
    assert steps < 3 * 41  # some steps brought several tokens
    assert counts(store) == expected


@given(TEXTS, st.randoms(use_true_random=False), st.integers(1, 9))
def test_neither_order_nor_pieces_of_insertion_change_counts(texts: list[list[int]], random, piece: int) -> None:  # type: ignore[no-untyped-def]
    """Pieces of a text come with the tokens behind them, which the forest has to count once and need not keep twice."""
    forest = Forest(4)
    shuffled = list(texts)
    random.shuffle(shuffled)
    for text in shuffled:
        for start in range(0, len(text), piece):
            forest.add(tuple(text[start : start + piece + 4]), 0, piece)
    assert counts(forest) == counts(grown(texts))


def test_pieces_of_one_text_share_what_they_overlap_in() -> None:
    forest, text = Forest(4), tuple(range(100))
    for start in range(0, 96, 8):
        forest.add(text[start : start + 12], 0, 8)
    assert list(forest.text) == list(text)
    assert len(forest.trees) == 96


def squeezed_once(before: dict[tuple[int, ...], float], roots: set[int]) -> dict[tuple[int, ...], float]:
    """The law for nodes: those above one halve, the others vanish."""
    return {path: count / 2 if path[0] in roots else count for path, count in before.items() if count > 1 or path[0] not in roots}


@given(TEXTS, st.integers(1, 20))
def test_squeezing_never_raises_a_count_and_reaches_the_bound(texts: list[list[int]], bound: int) -> None:
    forest = grown(texts * 2)
    before = expected = counts(forest)
    while large := {root for root in range(5) if sum(path[0] == root for path in expected) > bound}:
        expected = squeezed_once(expected, large)
    forest.squeeze(bound)
    after = counts(forest)
    assert after == expected
    assert all(freq <= before[path] for path, freq in after.items())
    assert all(1 < len(forest.nodes(root)) <= 1 + bound for root in forest.trees)
    small = {token for token in range(5) if sum(path[0] == token for path in before) <= bound}
    assert all(after.get(path) == freq for path, freq in before.items() if path[0] in small)  # what fits stays as it was


def test_text_that_no_place_needs_is_dropped() -> None:
    forest = Forest(4)
    kept = [[1, 2, 3], [1, 2, 4, 5]]
    for text in kept * 4:
        forest.add(tuple(text), 0, 1)
    for at in range(LITTLE):
        forest.add((6, 10 + at, 11 + at), 0, 1)
    for text in kept * 4:
        forest.add(tuple(text), 0, 1)
    before, size = {path: count for path, count in counts(forest).items() if path[0] == 1}, forest.memory_bytes()
    forest.squeeze(30)
    assert {path: count for path, count in counts(forest).items() if path[0] == 1} == before
    assert before[1, 2, 4, 5] == 8
    assert 6 not in forest.trees
    assert len(forest.text) < 100
    assert forest.memory_bytes() < size / 100
    forest.add((7, 8, 9), 0, 2)
    assert counts(forest)[7, 8, 9] == 1
    for root in list(forest.trees):
        forest.changed.add(root)
    forest.squeeze(0)
    assert not forest.trees
    forest._tidy()
    assert not forest.text


def test_a_squeezed_tree_keeps_what_is_frequent() -> None:
    forest = grown([[1, 2, 3]] * 4 + [[1, 5, 6]])
    forest.squeeze(2)
    assert counts(forest)[1, 2, 3] == 2.0
    assert (1, 5) not in counts(forest)


def test_a_limited_forest_stops_growing() -> None:
    forest = Forest(4, limit=10)
    text = [0, *range(1, 100), 0, 7, 7, 7]
    forest.add(tuple(text * 3), 0, 3 * len(text))
    assert max(len(forest.nodes(root)) - 1 for root in forest.trees) <= 10 + 4
    free = Forest(4)
    free.add(tuple(text * 3), 0, 3 * len(text))
    assert max(len(free.nodes(root)) - 1 for root in free.trees) > 10 + 4


def test_a_query_has_to_be_followed() -> None:
    forest = Forest(3)
    forest.add((1, 2) * 50, 0, 100)
    select = Selection()
    assert select([1, 2], None, forest, 9, 9).token == [1, 2]
    assert select([1, 2, 1], None, forest, 9, 9).token == [2]
    assert select([1, 2, 1, 2], None, forest, 9, 9).token == []  # the text goes on, what was kept behind the root does not
    assert select([3], None, forest, 9, 9).token == []
    assert select([1, 1], None, forest, 9, 9).token == []


def test_segments_end_at_end_of_sequence() -> None:
    assert segments([9, 1, 2, 9, 9, 0, 3], frozenset({9})) == [(1, (1, 2)), (5, (0, 3))]
    assert segments([1, 2], frozenset({9})) == [(0, (1, 2))]


def scores(prompt: Forest | None, outputs: Forest | None, token: int, depth: int, weight: float) -> dict[tuple[int, ...], float]:
    """The paper's common score of every node below `token`."""
    sources = [({} if forest is None else counts(forest)) for forest in (prompt, outputs)]
    every = {path[1:] for source in sources for path in source if path[0] == token and 1 < len(path) <= depth + 1}
    return {path: (1 - weight) * sources[0].get((token, *path), 0) + weight * sources[1].get((token, *path), 0) for path in every}


def paths_of(picked: Picked) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(picked.token, picked.parent, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@settings(max_examples=200)
@given(TEXTS, st.integers(1, 30), st.integers(1, 5))
def test_best_first_takes_the_highest_counts(texts: list[list[int]], budget: int, depth: int) -> None:
    forest = grown(texts, 5)
    for token in range(5):
        every = scores(None, forest, token, depth, 1.0)
        picked = best_first(forest, token, budget, depth)
        assert len(picked) == min(budget, len(every))
        assert len(set(paths_of(picked))) == len(picked)
        assert sorted((every[path] for path in paths_of(picked)), reverse=True) == sorted(every.values(), reverse=True)[: len(picked)]
        assert sorted(paths_of(picked.in_preorder())) == sorted(paths_of(picked))
        picked.tree(token)  # refuses anything but pre-order


@settings(max_examples=200)
@given(TEXTS, TEXTS, st.integers(1, 20), st.integers(1, 4))
def test_an_overfull_mixture_keeps_reserved_outputs_and_then_the_best(
    prompt_texts: list[list[int]], output_texts: list[list[int]], budget: int, depth: int
) -> None:
    prompt, outputs = grown(prompt_texts), grown(output_texts)
    weight = 1e-4
    for token in range(5):
        every = scores(prompt, outputs, token, depth, weight)
        alone = scores(None, outputs, token, depth, 1.0)
        picked = paths_of(Selection(weight, 0.0, 0.5)([token], prompt, outputs, budget, depth))
        assert len(picked) == min(budget, len(every)) == len(set(picked))
        if len(every) <= budget or token not in prompt.trees or token not in outputs.trees:
            continue
        highest = sorted(alone.values(), reverse=True)[: budget // 2]
        assert sorted((alone.get(path, 0.0) for path in picked), reverse=True)[: len(highest)] >= highest
        rest = budget - budget // 2  # places that nobody reserves go to the best by common score
        best = sorted(every.values(), reverse=True)[:rest]
        assert sorted((every[path] for path in picked), reverse=True)[:rest] == pytest.approx(best)


def test_prompt_nodes_survive_an_overfull_mixture() -> None:
    """The reference drops every prompt-only node here."""
    prompt, outputs = grown([[1, 90, 91]]), grown([[1, token, 50, 51] for token in range(2, 40)])
    picked = Selection(1e-4, 0.0, 0.5)([1], prompt, outputs, 10, 4)
    assert {(90,), (90, 91)} <= set(paths_of(picked))
    assert sum(path[0] != 90 for path in paths_of(picked)) >= 5


def test_one_branch_and_branches_side_by_side() -> None:
    forest = grown([[1, 2, 3]] * 3 + [[1, 2, 4], [1, 5, 6]])
    assert Selection(single=True)([1], None, forest, 2, 2).token == [2, 3]
    tree = best_first(forest, 1, 10, 4)
    flat = side_by_side(tree, 100)
    assert flat.tree(1).children()[0] == [1, 3, 5]
    leaves = {path for path in paths_of(tree) if not any(other[: len(path)] == path and other != path for other in paths_of(tree))}
    assert {path for path in paths_of(flat) if len(path) == 2} == leaves == {(2, 3), (2, 4), (5, 6)}
    assert len(side_by_side(tree, 3)) == 3


def test_no_more_than_there_is_room_for() -> None:
    forest = grown([[1, 2, 3]])
    assert len(best_first(forest, 1, 1, 9)) == len(best_first(forest, 1, 9, 1)) == 1
    assert len(best_first(forest, 1, 9, 9)) == 2
    assert len(best_first(forest, 1, 0, 9)) == len(best_first(forest, 1, 9, 0)) == 0

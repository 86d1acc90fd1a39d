"""Input-guided aggressive decoding: where it copies from, how many forwards an edit costs, and what it must not do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_pair import EOS, VOCABULARY, answer

from paceline.core.errors import UsageError
from paceline.core.registry import parse
from paceline.core.request import Request, Sequence
from paceline.drafting.base import DraftContext, DraftLimits, largest_draft
from paceline.drafting.iad import IAD, UNMAPPED, IADConfig, SourceIndex

MANY = DraftLimits(1000, 1000)
SOURCE = list(range(1, 21))  # 20 distinct tokens
NEW = 40  # a token that the source lacks


def member(source: list[int], output: list[int], start: int = 62) -> Sequence:
    request = Request((start,), source=tuple(source), max_tokens=100)
    return Sequence(0, request, tokens=[start, *output])


def drafted(source: list[int], output: list[int], config: IADConfig | None = None, limit: DraftLimits = MANY) -> list[int]:
    return list(IAD(config or IADConfig(), frozenset({EOS})).draft(member(source, output), limit))


def calls(target: list[int], source: list[int]) -> int:
    """Forwards of the scripted model; its output must be the script."""
    output = answer(target, source)
    assert output.token_ids == [*target, EOS]
    return output.stats.forwards


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(SOURCE, 1, id="identity"),
        pytest.param([*SOURCE[:9], NEW, *SOURCE[10:]], 3, id="one substitution"),
        pytest.param([*SOURCE[:9], NEW, *SOURCE[9:]], 3, id="one insertion"),
        pytest.param([*SOURCE[:9], *SOURCE[10:]], 2, id="one deletion"),
        pytest.param([*SOURCE[:5], NEW, *SOURCE[6:14], NEW + 1, *SOURCE[15:]], 5, id="two substitutions"),
        pytest.param(list(range(30, 45)), 16, id="nothing shared"),
    ],
)
def test_forwards_of_an_edit(target: list[int], expected: int) -> None:
    assert calls(target, SOURCE) == expected


def test_the_end_of_the_source_is_not_drafted() -> None:
    """Its EOS is no part of it; the target says its own, for nothing."""
    assert calls(SOURCE, [*SOURCE, EOS]) == 1
    assert drafted([*SOURCE, EOS], []) == SOURCE
    assert drafted([1, EOS, 2, EOS, EOS], []) == [1, EOS, 2]


def reference_calls(target: list[int], source: list[int]) -> int:
    """The page's loop, written down as it stands there."""
    said = [*target, EOS]
    done, count, start = 0, 0, 0
    while True:
        draft = [] if start is None else source[start:]
        count += 1
        accepted = 0
        while accepted < len(draft) and done + accepted < len(said) and draft[accepted] == said[done + accepted]:
            accepted += 1
        done += accepted + 1
        if done >= len(said):
            return count
        start = reference_lookup(said[:done], source)


def reference_lookup(history: list[int], source: list[int]) -> int | None:
    for size in (1, 2, 3):
        if len(history) < size:
            return None
        ends = [end for end in range(size, len(source) + 1) if source[end - size : end] == history[-size:]]
        if not ends:
            return None
        if len(ends) == 1:
            return ends[0]
    return None


TEXT = st.lists(st.integers(1, 7), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT)
def test_forwards_are_those_of_the_reference_loop(target: list[int], source: list[int]) -> None:
    assert calls(target, source) == reference_calls(target, source) <= len(target) + 1


@given(TEXT, TEXT)
def test_lookup_is_that_of_a_search(history: list[int], source: list[int]) -> None:
    assert SourceIndex(tuple(source), range(1, 4)).resume(history) == reference_lookup(history, source)


def test_an_ambiguous_place_is_not_guessed() -> None:
    """Taking the first of several occurrences would be as correct, and would judge wide drafts for nothing."""
    source = [1, 2, 3, 9, 1, 2, 3, 8]
    assert drafted(source, [3]) == []
    assert drafted(source, [2, 3]) == []
    assert drafted(source, [1, 2, 3]) == []  # still ambiguous at the longest size
    assert drafted(source, [9, 1, 2, 3], IADConfig(max_gram=4)) == [8]
    assert drafted(source, [5, 9]) == [1, 2, 3, 8]


def test_an_unknown_suffix_ends_the_search_and_a_short_history_too() -> None:
    assert drafted([1, 2, 1, 3], [5]) == []
    assert drafted([1, 2, 1, 3], [1]) == []  # two places, and no second token to tell them apart
    assert drafted([1, 2, 1, 3], [2, 1]) == [3]


def test_sizes_below_the_smallest_are_not_looked_up() -> None:
    assert drafted([1, 2, 3], [1], IADConfig(min_gram=2)) == []
    assert drafted([1, 2, 3], [1, 2], IADConfig(min_gram=2)) == [3]


def test_behind_the_last_token_there_is_nothing_left() -> None:
    assert drafted([1, 2, 3], [3]) == []


@pytest.mark.parametrize(
    ("limit", "config", "length"),
    [
        (DraftLimits(0, 0), IADConfig(), 0),
        (DraftLimits(3, 1000), IADConfig(), 3),
        (DraftLimits(1000, 2), IADConfig(), 2),
        (MANY, IADConfig(max_draft=4), 4),
        (MANY, IADConfig(max_len=6), 5),  # the target adds one of its own
        (MANY, IADConfig(max_len=1), 0),
    ],
)
def test_limits(limit: DraftLimits, config: IADConfig, length: int) -> None:
    assert drafted(SOURCE, [], config, limit) == SOURCE[:length]


def test_nothing_is_drafted_past_max_len() -> None:
    assert len(drafted(SOURCE, SOURCE[:5], IADConfig(max_len=8))) == 2
    assert drafted(SOURCE, SOURCE[:8], IADConfig(max_len=8)) == []


def test_a_capped_draft_costs_forwards_and_nothing_else() -> None:
    whole, capped = answer(SOURCE, SOURCE), answer(SOURCE, SOURCE, "iad:max_draft=4")
    assert whole.token_ids == capped.token_ids
    assert (whole.stats.forwards, capped.stats.forwards) == (1, 5)


def test_max_tokens_cuts_an_accepted_run() -> None:
    for most in (1, 7, 20, 21):
        output = answer(SOURCE, SOURCE, max_tokens=most)
        assert output.token_ids == [*SOURCE, EOS][:most]
        assert output.stats.forwards == 1


def test_a_forced_bos_is_not_drafted_again() -> None:
    """BART writes a BOS before source and target; the copy begins behind it."""
    assert drafted([7, 1, 2, 3], []) == [7, 1, 2, 3]
    assert list(IAD(IADConfig()).draft(member([7, 1, 2, 3], [], start=7), MANY)) == [1, 2, 3]


def test_a_prompt_is_the_source_of_a_decoder_only_model() -> None:
    drafter, sequence = IAD(IADConfig()), Sequence(0, Request((1, 2, 3, 4), max_tokens=20))
    assert drafter.draft(sequence, MANY) == ()  # an answer rarely begins with its whole prompt
    sequence.tokens += [9, 2]
    assert drafter.draft(sequence, MANY) == (3, 4)


def test_it_forgets() -> None:
    drafter, sequence = IAD(IADConfig()), member(SOURCE, [])
    drafter.propose([sequence], [MANY])
    assert drafter.memory_bytes() > 0
    drafter.release(sequence)
    assert drafter.memory_bytes() == 0


def build(source: dict[str, int], target: dict[str, int]) -> IAD:
    return IAD.build(IADConfig(), DraftContext(VOCABULARY, frozenset({EOS}), lambda rows: 0.0, vocabularies=(source, target)))


def test_two_vocabularies_are_mapped_by_their_pieces() -> None:
    """A piece that the target lacks ends the draft; behind it, copying can start again."""
    source = {"the": 0, "cat": 1, "sat": 2, "</s>": 3}
    target = {"cat": 10, "the": 11, "on": 12, "</s>": EOS}
    drafter = build(source, target)
    assert drafter.draft(member([0, 1, 2, 0, 1, 3], []), MANY) == (11, 10)
    drafter.release(member([0], []))
    assert drafter.draft(member([2, 1, 0, 3], [10]), MANY) == (11,)
    assert SourceIndex((UNMAPPED, 5), range(1, 2)).resume([5]) == 2


@pytest.mark.parametrize(("shared", "on"), [(1, False), (2, True), (0, False)])
def test_with_fewer_than_half_of_the_pieces_it_warns_and_is_off(shared: int, on: bool) -> None:
    source = {"a": 0, "b": 1, "c": 2, "d": 3}
    target = {piece: 10 + token for piece, token in source.items() if token < shared} | {"x": 1}
    if on:
        assert build(source, target).draft(member([0, 1], []), MANY) == (10, 11)
        return
    with pytest.warns(UserWarning, match=f"iad is off: only {shared} of the 4 pieces"):
        drafter = build(source, target)
    assert drafter.draft(member([0, 1], []), MANY) == ()


@pytest.mark.parametrize("text", ["iad:min_gram=0", "iad:min_gram=3,max_gram=2", "iad:max_draft=0", "iad:max_len=0", "iad:max_draft=some"])
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="iad"):
        parse(text)[0].config()


def test_the_engine_leaves_room_for_the_whole_source() -> None:
    (choice,) = parse("iad")
    assert largest_draft([choice.config()]) >= 512
    assert largest_draft([parse("iad:max_draft=9")[0].config()]) == 9

"""The n-gram table of STAND: mean laws, bounded memory, spaces that do not see each other."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_tables import compiled_table

from paceline.core.errors import UsageError
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.sampling import Sampling
from paceline.drafting.stand.scope import Space, Spaces, signature
from paceline.drafting.stand.table import Entry, NgramTable, Table

BOB, MARY, TOM, SUE = 0, 1, 2, 3  # id 0 is an ordinary token
Law = dict[int, float]
Make = Callable[[int, int], Table]


@pytest.fixture(params=["plain", "compiled"])
def make(request: pytest.FixtureRequest) -> Make:
    """Tables of contexts of one token, in plain Python and by the kernel."""
    if request.param == "plain":
        return lambda width, capacity: NgramTable((1,), width, capacity)
    return lambda width, capacity: compiled_table((1,), width, capacity)


def observe(table: Table, token: int, law: Law, space: str = "a") -> None:
    table.learn(space, array("i", [token]), 0, 1, [(list(law), list(law.values()))])


def found(table: Table, token: int = 5, space: str = "a") -> Entry | None:
    row = table.longest(space, (token,))
    return None if row is None else row[0]


def entry(table: Table, token: int = 5, space: str = "a") -> Law:
    row = found(table, token, space)
    assert row is not None
    return dict(zip(row.ids, row.probs, strict=True))


def test_the_worked_example(make: Make) -> None:
    table = make(10, 100)
    observe(table, 5, {BOB: 0.7, MARY: 0.2, TOM: 0.05})
    observe(table, 5, {MARY: 0.6, BOB: 0.3, SUE: 0.05})
    assert entry(table) == pytest.approx({BOB: 0.5, MARY: 0.4, TOM: 0.025, SUE: 0.025})  # 0.95 in all: not renormalised
    row = found(table)
    assert row is not None
    assert row.ids == (BOB, MARY, TOM, SUE)
    assert row.count == 2


def test_the_same_law_again_changes_nothing(make: Make) -> None:
    table = make(3, 100)
    law = {token: float(np.float32(prob)) for token, prob in ((9, 0.6), (0, 0.3), (4, 0.1 / 3))}
    for _ in range(7):
        observe(table, 5, law)
        assert entry(table) == law


@given(st.lists(st.dictionaries(st.integers(0, 6), st.floats(0.01, 0.2), min_size=1, max_size=5), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_order_of_two_observations_does_not_matter(laws: list[Law]) -> None:
    for make in (NgramTable, compiled_table):
        tables = [make((1,), 10, 100), make((1,), 10, 100)]  # at most 7 tokens in all: nothing is cut
        for table, order in zip(tables, (laws, laws[::-1]), strict=True):
            for law in order:
                observe(table, 5, law)
        assert entry(tables[0]) == pytest.approx(entry(tables[1]), rel=1e-5)


def test_normalising_before_averaging_would_be_another_table(make: Make) -> None:
    """Negative control of the worked example: laws of unequal mass weigh differently once normalised."""
    laws: list[Law] = [{BOB: 0.8, MARY: 0.1}, {MARY: 0.2}]
    table = make(10, 100)
    for law in laws:
        observe(table, 5, {token: prob / sum(law.values()) for token, prob in law.items()})
    wrong = entry(table)
    table = make(10, 100)
    for law in laws:
        observe(table, 5, law)
    assert entry(table) == pytest.approx({BOB: 0.4, MARY: 0.15})
    assert wrong != pytest.approx(entry(table))


def test_only_the_likeliest_stay_and_zeros_are_not_stored(make: Make) -> None:
    table = make(2, 100)
    observe(table, 5, {1: 0.5, 2: 0.0})
    assert entry(table) == {1: 0.5}
    observe(table, 5, {7: 0.8, 3: 0.1})
    assert list(entry(table)) == [7, 1]


def test_memory_is_bounded_and_the_least_recently_used_go_first(make: Make) -> None:
    table = make(4, 300)
    for token in range(300):
        observe(table, token, {token: 0.5})
    assert found(table, 0) is not None  # a look-up is a use
    for token in range(300, 310):
        observe(table, token, {token: 0.5})
    assert len(table) == 300
    assert table.evictions == 10
    assert entry(table, 0) == {0: 0.5}
    assert found(table, 1) is None
    assert entry(table, 309) == {309: 0.5}


def test_the_space_unused_for_longest_pays_first(make: Make) -> None:
    table = make(4, 4)
    for space in ("a", "b"):
        for token in range(2):
            observe(table, token, {token: 0.5}, space)
    table.use("a")
    observe(table, 9, {1: 0.5})
    assert found(table, 0, "b") is None
    assert found(table, 0) is not None


def test_spaces_are_apart_and_dropping_one_frees_its_rows(make: Make) -> None:
    table = make(4, 1000)
    for token in range(400):
        observe(table, token, {1: 0.5})
    before = table.bytes()
    assert found(table, 3, "b") is None
    table.drop("a")
    table.drop("never there")
    assert len(table) == 0
    for token in range(400):
        observe(table, token, {2: 0.25}, "b")
        assert entry(table, token, "b") == {2: 0.25}  # nothing is left of the row's last owner
    assert table.bytes() == before


def test_random_use_keeps_every_row_to_one_context(make: Make) -> None:
    table, numbers = make(2, 50), random.Random(1)
    for _ in range(2000):
        space = numbers.choice("abc")
        if numbers.random() < 0.01:
            table.drop(space)
        token = numbers.randrange(40)
        observe(table, token, {token: 0.5}, space)
        assert entry(table, token, space) == {token: 0.5}
        assert len(table) <= 50


@pytest.mark.parametrize("wrong", [((), 1, 1), ((0,), 1, 1), ((1,), 0, 5), ((1,), 5, 0)])
def test_sizes_must_be_positive(wrong: tuple[tuple[int, ...], int, int]) -> None:
    with pytest.raises(UsageError, match="above 0"):
        NgramTable(*wrong)


def sequence(uid: int, prompt: tuple[int, ...] = (1,), tenant: str = "", **options: float) -> Sequence:
    return Sequence(uid, Request(prompt, Sampling(**options), tenant=tenant))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scope", "shared"),
    [
        ("problem", (True, False, False)),
        ("request", (False, False, False)),
        ("user", (True, True, False)),
        ("process", (True, True, True)),
    ],
)
def test_scopes(scope: str, shared: tuple[bool, bool, bool]) -> None:
    """Against one sequence: the same prompt again, another prompt of the same tenant, another tenant."""
    spaces = Spaces(scope, 16, lambda space: None)  # type: ignore[arg-type]
    first = spaces.enter(sequence(0))
    others = (sequence(1), sequence(2, (2,)), sequence(3, (2,), "other"))
    assert tuple(spaces.enter(other) is first for other in others) == shared
    assert spaces.enter(sequence(4, temperature=0.7)) is not first  # other settings, other laws


def test_signatures_tell_all_settings_that_shape_laws() -> None:
    base = Sampling(temperature=0.7)
    assert signature(base) == signature(Sampling(temperature=0.7, seed=9, n=3, logprobs=2))
    penalties = ({"repetition_penalty": 1.1}, {"no_repeat_ngram": 2}, {"logit_bias": {1: 2.0}})
    for other in ({"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, *penalties):
        assert signature(Sampling(temperature=0.7, **other)) != signature(base)  # type: ignore[arg-type]


def test_idle_problems_are_forgotten_oldest_first_and_running_ones_never() -> None:
    gone: list[Space] = []
    spaces = Spaces("problem", 2, gone.append)
    members = [sequence(uid, (uid,)) for uid in range(5)]
    entered = [spaces.enter(member) for member in members]
    for member in members[1:]:
        spaces.leave(member)
    assert gone == entered[1:3]
    assert spaces.enter(sequence(9, (0,))) is entered[0]


def test_a_trajectory_scope_survives_preemption_and_ends_with_the_trajectory() -> None:
    gone: list[Space] = []
    spaces = Spaces("request", 2, gone.append)
    member = sequence(0)
    space = spaces.enter(member)
    spaces.leave(member)  # preempted
    assert spaces.enter(member) is space
    member.finish_reason = FinishReason.LENGTH
    spaces.leave(member)
    assert gone == [space]


def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(UsageError, match="scope='galaxy'"):
        Spaces("galaxy", 1, lambda space: None)  # type: ignore[arg-type]

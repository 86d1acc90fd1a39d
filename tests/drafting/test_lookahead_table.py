"""The hash table of branches: counting, decay, whole comparison, every slot, thresholds."""

from __future__ import annotations

import numpy as np
from lookahead_games import VOCABULARY, drafted, lookahead, paths, play

from paceline.drafting.lookahead.branch_table import ABSENT, BranchTable


def small(branches: int = 1, length: int = 4) -> BranchTable:
    """One bucket of eight slots per branch."""
    return BranchTable(10, length, branches, 4 * (length + 1) * 200)


def test_equal_branches_are_counted_and_permutations_are_not_equal() -> None:
    """The reference compares sums of ids, which permutations share."""
    table = small()
    for branch in ([1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4], [2, 2, 2, 4]):
        table.put(5, 6, branch)
    assert table.get(5, 6, 8) == [(2.0, [1, 2, 3, 4]), (1.0, [4, 3, 2, 1]), (1.0, [2, 2, 2, 4])]
    assert len(table.get(5, 6, 2)) == 2
    assert table.get(6, 5, 8) == []


def test_every_slot_of_a_bucket_is_read() -> None:
    """The reference reads the first few alone."""
    table = small()
    for last in range(8):
        table.put(0, 1, [last] * 4)
    assert {branch[0] for _, branch in table.get(0, 1, 8)} == set(range(8))
    table.put(0, 1, [7] * 4)
    assert table.get(0, 1, 1) == [(2.0, [7] * 4)]


def test_a_full_bucket_decays_and_replaces_the_first_below_one() -> None:
    table = small()
    for last in range(8):
        for _ in range(4 if last < 6 else 1):
            table.put(0, 1, [last] * 4)
    table.put(0, 1, [9] * 4)
    kept = {branch[0]: freq for freq, branch in table.get(0, 1, 8)}
    assert kept == {**dict.fromkeys(range(6), 2.0), 9: 1.0, 7: 0.5}
    full = small()
    for last in range(8):
        for _ in range(4):
            full.put(0, 1, [last] * 4)
    full.put(0, 1, [9] * 4)  # nothing falls below one: all decay, the newcomer has to come again
    assert {freq for freq, _ in full.get(0, 1, 8)} == {2.0}


def test_sizes_are_powers_of_two_and_buckets_stay_inside() -> None:
    table = BranchTable(50000, 12, 5, 1 << 16)
    assert (table.length, table.bucket) == (8, 32)
    table.put(49999, 49999, [1, 2])
    assert table.get(49999, 49999, 1) == [(1.0, [1, 2])]
    assert np.count_nonzero(table.branch[table.freq > 0] == ABSENT) == 6


def test_branches_merge_into_a_tree_within_the_budget() -> None:
    table = small(2)
    for branch in ([1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4]):
        table.put(0, 0, branch)
    assert paths(table.draft(0, 0, 4, 10, 4).tree(0)) == {(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 5), (1, 2, 5, 6)}
    assert len(table.draft(0, 0, 4, 5, 4)) == 5
    assert max(table.draft(0, 0, 4, 10, 2).tree(0).depth) == 2


def test_a_replay_is_drafted_from_the_table() -> None:
    drafter = lookahead(store="table", branch_length=8)

    def target(tokens: list[int]) -> int:
        return (tokens[-1] * 21 + 13) % VOCABULARY

    play(drafter, [7, 5], 60, target)
    _, trees = play(drafter, [7, 5], 60, target)
    assert len(trees) == -(-60 // 9)
    assert len(drafted(drafter, [5])) == 1  # a pair is needed
    assert len(drafted(drafter, [7, 5], tenant="b")) == 1

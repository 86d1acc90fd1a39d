"""The prefix cache: matching, splitting, deduplication, eviction order."""

from __future__ import annotations

from paceline.memory.holders import SlotBook
from paceline.memory.radix import RadixCache
from paceline.memory.runs import Run


class Fixture:
    """A book and a cache; `keep` plays a sequence that finishes."""

    def __init__(self, slots: int = 100) -> None:
        self.book = SlotBook(slots)
        self.cache = RadixCache(self.book)

    def keep(self, ids: list[int], namespace: str | None = None) -> Run:
        run = self.book.take(len(ids), len(ids))
        assert run is not None
        self.cache.insert(ids, [run], namespace)
        self.book.release([run])
        return run


def test_longest_prefix_across_edges() -> None:
    fixture = Fixture()
    fixture.keep([1, 2, 3, 4])
    fixture.keep([1, 2, 3, 4, 5, 6])
    assert fixture.cache.match([1, 2, 3, 9]) == [(0, 3)]  # ends inside an edge
    assert fixture.cache.match([1, 2, 3, 4, 5, 7]) == [(0, 4), (8, 9)]  # 4..8 were duplicates
    assert fixture.cache.match([2]) == []
    assert fixture.book.evictable == 6
    assert fixture.book.free == 94


def test_a_fork_in_the_road_splits_the_edge() -> None:
    fixture = Fixture()
    fixture.keep([1, 2, 3, 4])
    fixture.keep([1, 2, 8])
    assert sorted(fixture.cache.entries()) == [[(0, 2)], [(2, 4)], [(6, 7)]]
    assert fixture.cache.match([1, 2, 3, 4, 5]) == [(0, 4)]
    assert fixture.cache.match([1, 2, 8]) == [(0, 2), (6, 7)]
    fixture.keep([1, 2, 3])  # known to the middle of an edge: nothing to add
    assert len(fixture.cache.entries()) == 3


def test_namespaces_never_meet() -> None:
    fixture = Fixture()
    fixture.keep([1, 2, 3], "a")
    assert fixture.cache.match([1, 2, 3], "b") == []
    assert fixture.cache.match([1, 2, 3]) == []
    assert fixture.keep([1, 2, 3], "b") == (3, 6)
    assert fixture.cache.match([1, 2, 3], "b") == [(3, 6)]


def test_least_recently_used_goes_first_leaves_before_parents() -> None:
    fixture = Fixture()
    fixture.keep([1, 2, 3])
    fixture.keep([7, 8])
    fixture.keep([1, 2, 3, 4])
    fixture.cache.match([7, 8])
    assert fixture.cache.evict(1) == 1
    assert fixture.cache.match([1, 2, 3, 4]) == [(0, 3)]
    fixture.cache.match([1])
    assert fixture.cache.evict(1) == 2  # now [7, 8] is the oldest
    assert fixture.cache.match([7, 8]) == []
    assert fixture.cache.evict(50) == 3
    assert fixture.book.extents.extents() == [(0, 100)]


def test_what_a_sequence_holds_stays() -> None:
    fixture = Fixture()
    fixture.keep([1, 2, 3, 4, 5])
    held = fixture.cache.match([1, 2, 3])
    fixture.book.retain(held)
    assert fixture.book.evictable == 2
    assert fixture.cache.evict(50) == 2
    assert fixture.cache.match([1, 2, 3, 4, 5]) == [(0, 3)]
    fixture.book.release(held)
    assert fixture.cache.evict(50) == 3


def test_a_held_leaf_does_not_protect_an_idle_parent() -> None:
    """A sequence may hold a child without its parent: it computed the same prefix itself, beside the cached one."""
    fixture = Fixture()
    fixture.keep([1, 2, 3])
    own = fixture.book.take(5, 5)
    assert own is not None
    assert fixture.cache.insert([1, 2, 3, 4, 5], [own]) == 3
    assert fixture.book.evictable == 3
    assert fixture.cache.evict(1) == 3
    assert fixture.cache.entries() == []
    assert fixture.book.holders[: own[1]].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_insert_copies_what_it_was_given() -> None:
    fixture = Fixture()
    ids = [1, 2, 3]
    fixture.keep(ids)
    ids[0] = 9
    assert fixture.cache.match([1, 2, 3]) == [(0, 3)]

"""The extent allocator and the holder counts on top of it."""

from __future__ import annotations

import pytest

from paceline.memory.allocator import ExtentAllocator, OwnershipError
from paceline.memory.holders import SlotBook


def _with_free(size: int, *extents: tuple[int, int]) -> ExtentAllocator:
    allocator = ExtentAllocator(size)
    assert allocator.take(size, size) == (0, size)
    for start, stop in extents:
        allocator.give(start, stop)
    return allocator


def test_best_fit_for_the_wish_else_the_largest() -> None:
    allocator = _with_free(100, (0, 10), (20, 50), (60, 80))
    assert allocator.take(5, 18) == (60, 78)  # 20 fits 18 tighter than 30
    assert allocator.take(5, 40) == (20, 50)  # nothing holds 40: the largest, all of it
    assert allocator.take(11, 11) is None
    assert allocator.extents() == [(0, 10), (78, 80)]
    assert (allocator.free, allocator.largest) == (12, 10)


def test_growth_in_place() -> None:
    allocator = _with_free(100, (10, 14), (30, 50))
    assert allocator.extend(10, 5, 9) == 0  # only 4 follow
    assert allocator.extend(29, 1, 1) == 0  # slot 29 is held
    assert allocator.extend(30, 5, 9) == 9
    assert allocator.extend(39, 5, 90) == 11
    assert allocator.extents() == [(10, 14)]


def test_neighbours_merge_on_both_sides() -> None:
    allocator = _with_free(40, (0, 10), (20, 30))
    allocator.give(10, 20)
    assert allocator.extents() == [(0, 30)]
    allocator.give(30, 40)
    assert allocator.extents() == [(0, 40)]
    allocator.give(7, 7)
    assert allocator.free == 40


@pytest.mark.parametrize("again", [(0, 10), (5, 12), (19, 21), (0, 40), (35, 41)])
def test_double_free_is_an_error(again: tuple[int, int]) -> None:
    allocator = _with_free(40, (0, 10), (20, 30))
    with pytest.raises(OwnershipError):
        allocator.give(*again)
    assert allocator.extents() == [(0, 10), (20, 30)]


def test_a_slot_is_free_when_its_last_holder_leaves() -> None:
    book = SlotBook(10)
    run = book.take(6, 6)
    assert run == (0, 6)
    book.retain([(2, 5)])
    book.retain([(4, 6)], cache=True)
    assert (book.free, book.evictable, book.alone_from([run], 6)) == (4, 0, 6)
    book.release([run])
    assert (book.free, book.evictable) == (6, 1)  # 0, 1 free; 2 to 4 held, 4 and 5 cached
    assert book.extents.extents() == [(0, 2), (6, 10)]
    book.release([(2, 5)])
    assert book.evictable == 2
    book.release([(4, 6)], cache=True)
    assert book.extents.extents() == [(0, 10)]


def test_only_holders_may_release_or_share() -> None:
    book = SlotBook(10)
    book.take(4, 4)
    for wrong in (lambda: book.release([(3, 5)]), lambda: book.retain([(4, 5)]), lambda: book.release([(0, 1)], cache=True)):
        with pytest.raises(OwnershipError):
            wrong()
    book.retain([(0, 2)], cache=True)
    with pytest.raises(OwnershipError, match="cached already"):
        book.retain([(1, 2)], cache=True)

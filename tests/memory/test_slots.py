"""Slot memory and sequences: placement, commit, sharing, pressure, errors."""

from __future__ import annotations

import pytest
import torch
from slot_invariants import LAYOUT, Shadow, World, check_books, slots_of

from paceline.core.errors import UsageError
from paceline.memory.pool import GUARD
from paceline.memory.sequence import SequenceMemory
from paceline.memory.slots import KVLayout, OutOfSlots, OwnershipError, SlotMemory


def _world(slots: int = 256, *, prefix_cache: bool = True, contiguous: bool = False) -> World:
    return World(SlotMemory(LAYOUT, slots, prefix_cache=prefix_cache, contiguous=contiguous))


def _admit(world: World, ids: list[int], reserve: int = 0) -> Shadow:
    """Admit and prefill."""
    shadow = Shadow(world.memory.admit(ids, reserve), list(ids))
    world.live.append(shadow)
    world.feed(shadow, ids[shadow.memory.length :])
    world.check()
    return shadow


def _finish(world: World, shadow: Shadow, keep: bool = True) -> None:
    world.live.remove(shadow)
    world.memory.release(shadow.memory, shadow.ids if keep else None)
    world.check()


def test_pools_are_finite_and_padded_views_stay_inside() -> None:
    layout = KVLayout(((2, 8), (2, 8), (1, 4)), torch.bfloat16, torch.device("cpu"))
    memory = SlotMemory(layout, 40)
    for store in [*memory.keys, *memory.values]:
        assert len(store) >= 40 + GUARD
        assert not store.any()
        assert store.is_contiguous()
        assert store.data_ptr() % store.element_size() == 0
    assert memory.keys[2].shape[1:] == (1, 4)
    assert memory.bytes_per_slot == 2 * (16 + 16 + 4) * 2
    assert 40 + GUARD <= memory.trash < len(memory.keys[0])
    memory.keys[0][memory.trash] = 1  # pools of one shape share a tensor; a layer writes only its own part of it
    assert not memory.keys[1].any()
    assert not memory.values[0].any()


def test_writable_inside_and_outside_inference_mode() -> None:
    with torch.inference_mode():
        memory = SlotMemory(LAYOUT, 16)
        sequence = memory.admit([1, 2])
        sequence.reserve(4)
        memory.keys[0][sequence.slot(3)] = 5
    sequence.commit([0, 3])
    assert memory.keys[0][sequence.slot(1)].unique().item() == 5


def test_commit_compacts_a_path_across_runs() -> None:
    world = _world(64, prefix_cache=False)
    shadow, blocker = _admit(world, [1] * 10), _admit(world, [2] * 20)
    blocker.memory.shed()
    shadow.memory.reserve(34)
    assert shadow.memory.runs(44) == [(0, 26), (46, 64)]
    kept = range(14, 34)  # to logical 10..30, from and to both sides of the border
    for row in range(34):
        if row in kept:
            shadow.ids.append(row)
        world.write(shadow.memory, 10 + row, world.number(None, shadow.ids) if row in kept else -1)
    shadow.memory.commit(list(kept))
    world.check()
    assert shadow.memory.runs(30) == [(0, 26), (46, 50)]


@pytest.mark.parametrize("rows", [[1, 1], [2, 1], [-1, 0], [0, 4], [4]])
def test_commit_refuses_rows_that_cannot_be_kept(rows: list[int]) -> None:
    sequence = _world().memory.admit([1])
    sequence.reserve(4)
    with pytest.raises(UsageError, match="strictly increasing"):
        sequence.commit(rows)
    assert sequence.length == 0


def test_scratch_survives_a_relocation() -> None:
    """Trees grown by layers reserve again behind rows that are not committed yet."""
    world = _world(256, prefix_cache=False)
    shadow = _admit(world, [1] * 10)
    blocker = _admit(world, [2])
    shadow.memory.reserve(5)
    for row in range(5):
        world.write(shadow.memory, 10 + row, 1000 + row)
    before = shadow.memory.slot(0)
    shadow.memory.reserve(100)
    assert shadow.memory.slot(0) != before
    assert len(shadow.memory.held) == 1
    written = world.memory.keys[0][[shadow.memory.slot(10 + row) for row in range(5)], 0, 0]
    assert written.tolist() == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]
    shadow.memory.commit([])
    world.check()
    assert blocker.memory.length == 1


def test_a_relocation_that_forgets_scratch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    real = SequenceMemory.settle

    def settle(self: SequenceMemory, logical: int, run: tuple[int, int]) -> None:
        live, self.live = self.live, self.length
        real(self, logical, run)
        self.live = live

    monkeypatch.setattr(SequenceMemory, "settle", settle)
    with pytest.raises(AssertionError):
        test_scratch_survives_a_relocation()


def test_a_long_generation_moves_rarely_and_ends_in_one_run() -> None:
    world = _world(4096, prefix_cache=False)
    shadows = [_admit(world, [token] * 10) for token in range(4)]
    moves = 0
    for step in range(600):
        for shadow in shadows:
            before = shadow.memory.slot(0)
            shadow.memory.reserve(1)
            shadow.memory.commit([0])
            moves += shadow.memory.slot(0) != before
            assert step < 300 or len(shadow.memory.held) == 1
    check_books(world.memory)
    assert moves < 4 * 20


def test_the_promised_room_is_one_run() -> None:
    world = _world(4096)
    shadows = [_admit(world, [token] * 10, reserve=300) for token in range(8)]
    firsts = [shadow.memory.slot(0) for shadow in shadows]
    for shadow in shadows:
        for _ in range(60):
            shadow.memory.reserve(5)
            shadow.memory.commit(range(5))
    assert [shadow.memory.slot(0) for shadow in shadows] == firsts
    assert all(len(shadow.memory.held) == 1 for shadow in shadows)


def test_a_second_turn_continues_behind_the_first_without_a_copy() -> None:
    world = _world()
    first = _admit(world, [1, 2, 3, 4, 5], reserve=10)
    _finish(world, first)
    second = _admit(world, [1, 2, 3, 4, 5, 6, 7])
    assert second.memory.runs(7) == [(0, 7)]
    assert second.memory.shared == 5
    assert world.memory.free_slots == 256 - 7


@pytest.mark.parametrize("contiguous", [False, True])
def test_two_readers_of_one_prefix(contiguous: bool) -> None:
    world = _world(contiguous=contiguous)
    _finish(world, _admit(world, [*range(50)]))
    one, two = _admit(world, [*range(50), 98, 98]), _admit(world, [*range(50), 99, 99])
    assert len(one.memory.runs(52)) == 1
    assert len(two.memory.runs(52)) == (1 if contiguous else 2)
    used = 256 - world.memory.free_slots
    assert used == (104 if contiguous else 54)


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    world = _world()
    _finish(world, _admit(world, [1, 2, 3]))
    assert world.memory.admit([1, 2, 3]).length == 2


def test_without_a_prefix_cache_nothing_stays() -> None:
    world = _world(prefix_cache=False)
    _finish(world, _admit(world, [1, 2, 3]))
    assert world.memory.admit([1, 2, 3]).length == 0
    assert world.memory.evictable_slots == 0


def test_forks_share_and_part() -> None:
    world = _world()
    parent = _admit(world, [1, 2, 3, 4, 5, 6])
    child = Shadow(parent.memory.fork(), list(parent.ids))
    world.live.append(child)
    assert 256 - world.memory.free_slots == 6
    child.memory.truncate(4)
    child.ids = child.ids[:4]
    world.feed(child, [9, 9])
    world.feed(parent, [7])
    world.check()
    assert 256 - world.memory.free_slots == 9
    _finish(world, parent, keep=False)
    assert 256 - world.memory.free_slots == 6


def test_headroom_counts_as_free_and_is_given_up() -> None:
    world = _world(100)
    greedy = _admit(world, [1] * 10, reserve=80)
    assert greedy.memory.headroom >= 80
    assert world.memory.free_slots == 90
    assert not world.memory.can_admit(11)  # promised away
    other = _admit(world, [2] * 60)
    assert greedy.memory.headroom == 0
    assert other.memory.length == 60


def test_eviction_makes_room_and_out_of_slots_changes_nothing() -> None:
    world = _world(100)
    _finish(world, _admit(world, [1] * 60))
    assert world.memory.evictable_slots == 60
    assert world.memory.can_admit(100)
    big = _admit(world, [2] * 90)
    assert world.memory.evictable_slots == 0
    held, holders = list(big.memory.held), world.memory.book.holders.copy()
    with pytest.raises(OutOfSlots, match="11 more KV slots needed, 10 free"):
        _fill(big, 21)
    assert big.memory.length == 90
    assert (world.memory.book.holders == holders).all()
    assert big.memory.held == held
    with pytest.raises(OutOfSlots):
        world.memory.admit([3] * 20)
    world.check()


def _fill(shadow: Shadow, rows: int) -> None:
    shadow.memory.reserve(rows)


def test_snapshots_travel_between_memories() -> None:
    here, there = _world(), _world(64)
    shadow = _admit(here, [1, 2, 3, 4])
    saved = shadow.memory.snapshot()
    assert saved.bytes == shadow.memory.bytes() == 4 * here.memory.bytes_per_slot
    there.numbers = here.numbers
    there.live.append(Shadow(there.memory.restore(saved), [1, 2, 3, 4]))
    there.check()
    other = SlotMemory(KVLayout(LAYOUT.layers, torch.float32, LAYOUT.device), 16)
    with pytest.raises(UsageError, match="another layout"):
        other.restore(saved)
    with pytest.raises(OutOfSlots):
        SlotMemory(LAYOUT, 3).restore(saved)
    check_books(other)


def test_misuse_is_refused() -> None:
    memory = _world().memory
    sequence = memory.admit([1, 2])
    with pytest.raises(OwnershipError, match="reserve the rows first"):
        sequence.runs(sequence.capacity + 1)
    with pytest.raises(OwnershipError, match="reserve the rows first"):
        sequence.slot(sequence.capacity)
    with pytest.raises(UsageError, match="cannot truncate"):
        sequence.truncate(1)
    with pytest.raises(UsageError, match="exactly the committed"):
        memory.release(sequence, [1, 2])
    with pytest.raises(OwnershipError):
        _world().memory.release(sequence)
    memory.release(sequence)
    for use in (lambda: memory.release(sequence), lambda: sequence.reserve(1), lambda: sequence.fork(), lambda: sequence.commit([])):
        with pytest.raises(OwnershipError, match="released"):
            use()
    check_books(memory)
    with pytest.raises(UsageError, match="at least 1"):
        SlotMemory(LAYOUT, 0)
    with pytest.raises(UsageError, match="layer 1 has 0 heads"):
        KVLayout(((1, 2), (0, 2)), torch.float32, torch.device("cpu"))


def test_reset_returns_everything() -> None:
    world = _world(64)
    _finish(world, _admit(world, [1] * 10))
    left = _admit(world, [2] * 10)
    world.memory.reset()
    assert world.memory.free_slots == 64
    assert left.memory.released
    assert slots_of(world.memory.book.extents.extents()) == list(range(64))
    check_books(world.memory)

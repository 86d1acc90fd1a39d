"""The allocation ledger."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import UsageError
from paceline.memory.ledger import CATEGORIES, Ledger
from paceline.memory.slots import KVLayout, SlotMemory


def test_peaks_outlive_what_made_them() -> None:
    ledger = Ledger()
    ledger.add("weights", 100)
    ledger.add("logits", 40)
    ledger.sub("logits", 30)
    ledger.add("vision", 20)
    assert ledger.live["logits"] == 10
    assert ledger.peak_bytes() == {**dict.fromkeys(CATEGORIES, 0), "weights": 100, "logits": 40, "vision": 20, "total": 140}
    ledger.reset_peaks()
    assert ledger.peak_bytes()["logits"] == 10
    assert ledger.total_peak == ledger.total == 130


def test_a_part_has_no_share_in_the_total() -> None:
    ledger = Ledger()
    ledger.part("kv_used")
    ledger.add("kv", 100)
    ledger.add("kv_used", 60)
    assert (ledger.total, ledger.peak["kv_used"]) == (100, 60)
    with pytest.raises(UsageError, match="already counts"):
        ledger.part("kv")


def test_what_passes_leaves_only_peaks() -> None:
    ledger = Ledger()
    ledger.add("weights", 100)
    ledger.passing({"logits": 30, "activations": 20, "scratch": 7})
    ledger.passing({"logits": 40, "activations": 5, "scratch": 3})
    assert ledger.total == 100
    assert set(ledger.live.values()) == {0, 100}
    assert {name: ledger.peak[name] for name in ("logits", "activations", "scratch")} == {"logits": 40, "activations": 20, "scratch": 7}
    assert ledger.total_peak == 150, "together, not each at its worst; scratch lies inside the pools"


def test_freeing_what_was_never_added_is_an_error() -> None:
    ledger = Ledger()
    with pytest.raises(UsageError, match="never added"):
        ledger.sub("logits", 1)
    assert ledger.total == 0


def test_several_memories_share_one_ledger() -> None:
    ledger = Ledger()
    layout = KVLayout(((2, 4),), torch.bfloat16, torch.device("cpu"))
    target, other = (SlotMemory(layout, 32, ledger) for _ in range(2))
    draft = SlotMemory(layout, 16, ledger, category="draft_kv")
    assert ledger.live["kv"] == target.pool.bytes + other.pool.bytes
    assert ledger.live["draft_kv"] == draft.pool.bytes
    for memory, rows in ((target, 5), (other, 7), (draft, 3)):
        sequence = memory.admit([1], 0)
        sequence.reserve(rows)
        sequence.commit(range(rows))
    assert target.bytes_per_slot == 2 * 2 * 4 * 2
    assert ledger.live["kv_used"] == 12 * target.bytes_per_slot
    assert ledger.live["draft_kv_used"] == 3 * draft.bytes_per_slot
    target.reset()
    assert ledger.live["kv_used"] == 7 * other.bytes_per_slot
    assert ledger.peak["kv_used"] == 12 * other.bytes_per_slot
    assert ledger.total == sum(memory.pool.bytes for memory in (target, other, draft))

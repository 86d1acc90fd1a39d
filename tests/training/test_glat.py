"""Block-mask noise, glancing and its loss: the recipe's numbers, shared dropout, and that it learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.models.nat import NatConfig, NatDrafter, new_nat
from paceline.training import glat
from paceline.training.glat import Block, block_noise, glance, glance_ratio, glancing_loss

MASK, PAD, EOS = 2, 1, 0


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets(lengths: list[int]) -> Tensor:
    """Rows 10, 11, 12, ... ended by end-of-text, padded."""
    rows = [[*range(10, 9 + length), EOS] for length in lengths]
    return torch.tensor([row + [PAD] * (max(lengths) - len(row)) for row in rows])


def network(dropout: float = 0.0, seed: int = 1) -> NatDrafter:
    return new_nat(NatConfig(64, 16, 2, 1, 2, 32, 32, 64, block=6, dropout=dropout), seed)


@pytest.mark.parametrize("block", [1, 5, 25])
def test_noise_puts_a_whole_block_behind_a_gold_prefix(block: int) -> None:
    lengths = torch.tensor([1, 2, 7, 30, 30])
    target = targets(lengths.tolist())
    for seed in range(50):
        made = block_noise(target, lengths, block, MASK, random(seed))
        assert made.slots.sum(-1).tolist() == [block] * 5
        for row, length in enumerate(lengths.tolist()):
            kept = int(made.slots[row].int().argmax())
            assert 0 <= kept < length  # there is always something to predict
            assert made.ids[row, :kept].tolist() == target[row, :kept].tolist()
            assert (made.ids[row, made.slots[row]] == MASK).all()
            wanted = target[row, kept : min(length, kept + block)].tolist()
            assert made.labels[row, made.labelled[row]].tolist() == wanted
            assert made.known[row].sum() == kept + block
            if kept + block >= length:
                assert wanted[-1] == EOS  # the end is part of what is learnt


def test_cuts_are_uniform() -> None:
    """r = L - floor(L u) - 1: every prefix length from 0 to L - 1 equally often."""
    lengths = torch.full((6000,), 4)
    made = block_noise(targets([4] * 6000), lengths, 3, MASK, random())
    counts = torch.bincount(made.slots.int().argmax(-1), minlength=4)
    assert counts.tolist() == pytest.approx([1500] * 4, rel=0.1)


def block_of(labelled: list[list[int]]) -> Block:
    marks = torch.tensor(labelled, dtype=torch.bool)
    labels = torch.arange(marks.numel()).view(marks.shape) + 10
    return Block(torch.where(marks, MASK, labels), marks.clone(), labels, marks, torch.ones_like(marks))


@pytest.mark.parametrize(("right", "ratio", "shown"), [(0, 0.5, 4), (3, 0.5, 2), (8, 0.5, 0), (0, 0.0, 0), (0, 0.3, 2), (7, 1.0, 1)])
def test_glancing_reveals_a_share_of_the_number_of_wrong_slots(right: int, ratio: float, shown: int) -> None:
    """floor((M - c) * ratio) of the M labelled slots, whether they were right or not."""
    block = block_of([[0, 0] + [1] * 8 + [0]])
    hits = torch.zeros_like(block.slots)
    hits[0, 2 : 2 + right] = True
    hits[0, 0] = hits[0, 10] = True  # what is not labelled does not count
    for seed in range(20):
        revealed = glance(hits, block, ratio, random(seed))
        assert int(revealed.sum()) == shown
        assert not (revealed & ~block.labelled).any()


def test_every_labelled_slot_is_revealed_equally_often() -> None:
    block = block_of([[1] * 8])
    shown = [glance(torch.zeros_like(block.slots), block, 0.5, random(seed)) for seed in range(800)]
    assert torch.cat(shown).sum(0).tolist() == pytest.approx([400] * 8, rel=0.15)


def test_revealed_slots_hold_gold_and_leave_the_loss() -> None:
    block = block_of([[0, 1, 1, 1]])
    shown = torch.tensor([[True, False, True, False]])  # the first is no slot: nothing changes there
    after = block.reveal(shown)
    assert after.ids.tolist() == [[10, MASK, 12, MASK]]
    assert after.slots.tolist() == after.labelled.tolist() == [[False, True, False, True]]


def test_the_ratio_falls_linearly() -> None:
    assert [glance_ratio(share, (0.5, 0.3)) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.4, 0.3])


def both_passes(monkeypatch: pytest.MonkeyPatch, drafter: NatDrafter) -> list[Tensor]:
    """States of the first and the second pass when nothing is revealed between them."""
    seen: list[Tensor] = []
    drafter.register_forward_hook(lambda module, args, states: seen.append(states.detach().clone()))
    target = targets([9, 5])
    block = block_noise(target, torch.tensor([9, 5]), 6, MASK, random(3))
    torch.manual_seed(0)
    glancing_loss(drafter, drafter.encode(target), block, 0.0, 0.1, random())
    return seen


def test_both_passes_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = both_passes(monkeypatch, network(dropout=0.4).train())
    assert torch.equal(first, second)


def test_other_dropout_in_the_second_pass_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(glat, "_set_noise_state", lambda device, state: None)
    first, second = both_passes(monkeypatch, network(dropout=0.4).train())
    assert not torch.equal(first, second)


def test_the_loss_is_that_of_labelled_slots_alone() -> None:
    drafter, target = network().eval(), targets([9, 3])
    block = block_noise(target, torch.tensor([9, 3]), 6, MASK, random(1))
    source = drafter.encode(target)
    loss, entropy = glancing_loss(drafter, source, block, 0.0, 0.1, random())
    logits = drafter.logits(drafter(source, block.ids, block.slots, block.known))
    places = [(row, at) for row in range(2) for at in range(block.ids.shape[1]) if block.labelled[row, at]]
    rows = torch.stack([logits[place] for place in places])
    labels = torch.tensor([int(block.labels[place]) for place in places])
    assert float(entropy) == pytest.approx(float(F.cross_entropy(rows, labels).detach()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(rows, labels, label_smoothing=0.1).detach()), rel=1e-5)


def test_glancing_teaches_a_small_network_to_copy() -> None:
    drafter, noise = network().train(), random(5)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        rows = torch.randint(10, 64, (16, 12), generator=noise)
        block = block_noise(rows, torch.full((16,), 12), 6, MASK, noise)
        loss, entropy = glancing_loss(drafter, drafter.encode(rows), block, 0.5, 0.0, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(entropy))
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]

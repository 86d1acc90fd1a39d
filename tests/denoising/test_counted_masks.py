"""Masks with a fixed number per row: the bound of rates, with less noise."""

from __future__ import annotations

from math import log

import torch

from paceline.denoising.objective import counted_masks, masked_loss, masks, rates


def test_every_number_is_equally_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = torch.arange(12).expand(5, -1) >= torch.tensor([0, 4, 4, 8, 11])[:, None]
    counts = torch.zeros(5, 13)
    where = torch.zeros(5, 12)
    for _ in range(4000):
        masked, rate = counted_masks(answers, generator)
        assert not (masked & ~answers).any()
        assert torch.allclose(rate, masked.sum(-1) / answers.sum(-1))
        counts[torch.arange(5), masked.sum(-1)] += 1
        where += masked
    for row, length in enumerate(answers.sum(-1).tolist()):
        assert counts[row, 0] == 0
        assert torch.allclose(counts[row, 1 : length + 1] / 4000, torch.full((length,), 1 / length), atol=0.04)
        places = where[row, 12 - length :] / 4000
        assert torch.allclose(places, torch.full((length,), (length + 1) / 2 / length), atol=0.05)


def test_the_loss_of_ignorance_has_no_variance() -> None:
    """Negative control: with rates it has."""
    generator = torch.Generator().manual_seed(1)
    answers = torch.arange(9).expand(4, -1) >= torch.tensor([0, 2, 5, 8])[:, None]
    ids, logits = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, 7)
    counted, rated = [], []
    for _ in range(300):
        masked, rate = counted_masks(answers, generator)
        counted.append(masked_loss(logits, ids, masked, rate, answers))
        rate = rates(4, generator)
        rated.append(masked_loss(logits, ids, masks(answers, rate, generator), rate, answers))
    assert torch.allclose(torch.stack(counted), torch.tensor(log(7)), atol=1e-5)
    assert abs(float(torch.stack(rated).mean()) - log(7)) < 0.5
    assert float(torch.stack(rated).std()) > 0.3


def test_both_estimate_the_same_bound() -> None:
    """Predictions that know more, the less is masked: the bound is an average over numbers of masks."""
    generator = torch.Generator().manual_seed(2)
    answers = torch.ones(8, 6, dtype=torch.bool)
    ids = torch.zeros(8, 6, dtype=torch.long)
    found = {"counted": 0.0, "rated": 0.0}
    rounds = 1500
    for _ in range(rounds):
        for name in found:
            if name == "counted":
                masked, rate = counted_masks(answers, generator)
            else:
                rate = rates(8, generator, least=1e-6)
                masked = masks(answers, rate, generator)
            logits = torch.zeros(8, 6, 4)
            logits[..., 0] = (6 - masked.sum(-1)).float()[:, None] / 2
            found[name] += float(masked_loss(logits, ids, masked, rate, answers)) / rounds
    exact = sum(-torch.log_softmax(torch.tensor([(6 - count) / 2, 0.0, 0.0, 0.0]), 0)[0] for count in range(1, 7)) / 6
    assert abs(found["counted"] - float(exact)) < 0.02
    assert abs(found["rated"] - float(exact)) < 0.08

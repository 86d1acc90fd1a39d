"""Losses and likelihoods of masked diffusion models: expected values, gradients, and the exact sum they estimate."""

from __future__ import annotations

from itertools import combinations
from math import log

import pytest
import torch
from diffusion_models import MASK, VOCABULARY, Make, Reference

from paceline.denoising.likelihood import answer_nats, mask_counts
from paceline.denoising.objective import context_weights, masked_loss, masks, noisy_and_clean, pretraining_length, rates
from paceline.engine.canvas_logits import canvas_logits


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    """In expectation over rates and masks, whatever the length of the answers."""
    rows, tokens, vocabulary = 20_000, 12, 7
    generator = draws()
    answers = torch.arange(tokens) >= torch.randint(0, tokens - 1, (rows, 1), generator=generator)
    rate = rates(rows, generator, least=0.2)  # a larger least rate, for a smaller variance
    masked = masks(answers, rate, generator)
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    for pooled in (False, True):
        loss = masked_loss(torch.zeros(rows, tokens, vocabulary), ids, masked, rate, answers, pooled=pooled)
        assert abs(float(loss) / log(vocabulary) - 1) < 0.02
    assert not masked[~answers].any()


def test_gradients_scale_with_the_inverse_rate() -> None:
    ids, answers = torch.randint(0, 7, (3, 8), generator=draws()), torch.ones(3, 8, dtype=torch.bool)
    masked = masks(answers, torch.full((3,), 0.5), draws(1))
    found = []
    for rate in (0.5, 0.125):
        logits = torch.zeros(3, 8, 7, requires_grad=True)
        masked_loss(logits, ids, masked, torch.full((3,), rate), answers).backward()
        assert logits.grad is not None
        found.append(logits.grad)
    torch.testing.assert_close(found[1], 4 * found[0])
    assert not found[0][~masked].any()


def test_a_shifted_loss_reads_the_position_before() -> None:
    ids = torch.randint(0, 7, (1, 6), generator=draws())
    masked = torch.tensor([[False, False, True, False, True, True]])
    logits = torch.randn(1, 6, 7, generator=draws(2))
    plain = masked_loss(logits, ids, masked, torch.ones(1), torch.ones(1, 6, dtype=torch.bool))
    moved = masked_loss(logits.roll(-1, 1), ids, masked, torch.ones(1), torch.ones(1, 6, dtype=torch.bool), shifted=True)
    torch.testing.assert_close(plain, moved)


def test_no_row_is_left_without_a_mask() -> None:
    answers = torch.ones(500, 3, dtype=torch.bool)
    answers[0] = False  # nothing to mask
    low = torch.full((500,), 0.01)
    assert (~masks(answers, low, draws()).any(-1)).sum() > 400
    forced = masks(answers, low, draws(), at_least_one=True)
    assert forced[1:].any(-1).all()
    assert not forced[0].any()


def test_some_batches_are_shorter() -> None:
    generator = draws()
    lengths = [pretraining_length(64, generator, share=0.2) for _ in range(2000)]
    shorter = [length for length in lengths if length < 64]
    assert 300 < len(shorter) < 500
    assert min(shorter) == 1
    assert max(shorter) == 63


def test_context_weights_fall_with_distance() -> None:
    masked = torch.tensor([[False, True, True, True, True, False]])
    weight = context_weights(masked, reach=0.5)[0]
    torch.testing.assert_close(weight[1], torch.tensor(0.5 * (0.5 + 0.5 * 0.5**3)))
    assert weight[1] > weight[2]
    torch.testing.assert_close(weight[1:3], weight[3:5].flip(0))


def test_noisy_blocks_see_clean_blocks_before_them() -> None:
    positions, visible = noisy_and_clean(6, 2)
    assert positions.tolist() == [0, 1, 2, 3, 4, 5] * 2
    for row in range(12):
        for column in range(12):
            mine, other = row % 6 // 2, column % 6 // 2
            expected = mine == other if row < 6 and column < 6 else mine > other if row < 6 else column >= 6 and mine >= other
            assert visible[row, column] == expected


def test_counts_of_masks_are_spread_evenly() -> None:
    seen = torch.zeros(9, 9)
    for seed in range(900):
        counts = mask_counts(9, 9, draws(seed))
        assert sorted(counts.tolist()) == list(range(1, 10))
        seen[torch.arange(9), counts - 1] += 1
    assert (seen - 100).abs().max() < 45


def test_likelihood_estimates_the_sum_over_all_subsets(make: Make, references: dict[str, Reference]) -> None:
    """The mean over the number of masks of the mean over subsets; exact for one token, and for a table of constants."""
    prompt, answer = [5, 6, 7], [8, 9, 4]
    for layout in ("llada", "dream"):
        runner, reference = make(layout).runner, references[layout]
        exact = 0.0
        for count in (1, 2, 3):
            for hidden in combinations(range(3), count):
                ids = [*prompt, *(MASK if at in hidden else token for at, token in enumerate(answer))]
                law = reference.shifted(ids).log_softmax(-1)
                subsets = {1: 3, 2: 3, 3: 1}[count]
                exact -= sum(float(law[3 + at, answer[at]]) for at in hidden) / count / subsets
        found = answer_nats(lambda ids, runner=runner: canvas_logits(runner, ids), prompt, answer, MASK, samples=600, batch=6)
        assert abs(found / exact - 1) < 0.05
        once = answer_nats(lambda ids, runner=runner: canvas_logits(runner, ids), prompt, answer[:1], MASK, samples=1, batch=1)
        law = reference.shifted([*prompt, MASK]).log_softmax(-1)
        assert once == pytest.approx(-float(law[3, answer[0]]), abs=1e-9)

    def uniform(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, VOCABULARY)

    assert answer_nats(uniform, prompt, answer, MASK, samples=4, batch=4) == pytest.approx(3 * log(VOCABULARY))
    rated = answer_nats(uniform, prompt, [1] * 12, MASK, samples=4096, batch=64, draw="rate")
    assert rated == pytest.approx(10 * log(VOCABULARY), rel=0.1)  # the first and the last are never masked

"""The toy task and its table: right answers, the size of the model, closed-form counts, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paceline.bench.denoising_rows import interval, row_of, run_method
from paceline.bench.sort_reverse import ANSWER, BOS, EOS, MASK, PARAMETERS, PROMPT, SEP, Training, answer_of, examples, train
from paceline.engine.llm import LLM
from paceline.engine.load import load


@pytest.fixture(scope="module")
def untrained() -> LLM:
    return load(train(Training(steps=0, sequences=64)), "static", device="cpu", kv_tokens=256, pack=False)


def test_answers() -> None:
    assert answer_of([BOS, 3, 1, 2, 0, 9, 9, 0, 5, SEP])[:8] == [1, 2, 3, SEP, 3, 2, 1, EOS]
    prompts, answers = examples(200, 1)
    assert prompts.shape == (200, PROMPT)
    assert answers.shape == (200, ANSWER)
    lengths = {int(row.tolist().index(SEP)) for row in answers}
    assert lengths == {3, 4, 5, 6, 7, 8}
    assert not ((prompts == MASK) | (prompts == EOS)).any()


def test_the_model_is_the_one_described(untrained: LLM) -> None:
    decoder = untrained.runner.decoder
    assert sum(weight.numel() for weight in decoder.parameters()) == PARAMETERS
    assert decoder.config.diffusion is not None
    assert decoder.config.diffusion.mask == MASK


def test_rows_of_the_table(untrained: LLM) -> None:
    """Counts do not depend on training: 816, 438 and 270 rows; 408, 204 and 102 with 2, 4 and 8 per step."""
    prompts, answers = (table.tolist() for table in examples(3, 2))
    reference = run_method(untrained, "static:block=8", prompts, ANSWER)
    for method, rows, forwards in (
        ("static:block=8", 816, 24),
        ("static:block=8,per_step=2", 408, 12),
        ("static:block=8,per_step=4", 204, 6),
        ("static:block=8,per_step=8", 102, 3),
        ("static:block=8,cache=prefix", 438, 24),
        ("static:block=8,cache=dual", 270, 24),
    ):
        row = row_of(run_method(untrained, method, prompts, ANSWER, batch=3), reference, answers)
        assert (row["rows"], row["forwards"]) == (rows, forwards)
    assert row_of(reference, reference, answers)["agree"] == 1.0


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    train(Training(steps=40, sequences=500, batch=32, warm_up=10), lambda _, loss: losses.append(loss))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:3])


def test_intervals_hold_the_mean() -> None:
    values = torch.rand(80, generator=torch.Generator().manual_seed(0)).double().numpy()
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low < 0.2

"""Needles in hay: prompts hold every digit once, short ones are learnt, and sparse attention is measured on them as it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline.bench import needles
from paceline.bench.denoising_rows import run_method
from paceline.bench.needles import DIGITS, FIRST_DIGIT, FIRST_HAY, NEEDLES, SEP, drawn, examples, train
from paceline.bench.sort_reverse import Training
from paceline.bench.sparse_quality import Kept, Task, quality_rows, work
from paceline.engine.load import load

BRIEF = ((0.0, 16, 8), (0.5, 24, 4))


@pytest.fixture(scope="module")
def task() -> Task:
    decoder = train(Training(steps=2, warm_up=1), BRIEF).to(torch.float64)  # rounding must not decide between equal guesses
    model = load(decoder, "static", device="cpu", kv_tokens=256, pack=False)
    asked, answers = examples(3, 60, 1)
    return Task("untrained", model, asked.tolist(), answers.tolist(), NEEDLES, 4)


def test_prompts_hold_what_is_asked() -> None:
    prompts, answers = examples(50, 40, 3)
    assert prompts.shape == (50, 40)
    for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
        found = [token for token in prompt if token < FIRST_HAY]
        assert sorted(token // DIGITS for token in found) == list(range(NEEDLES))
        assert [FIRST_DIGIT + token % DIGITS for token in sorted(found)] == answer
        assert prompt[-1] == SEP
        assert all(FIRST_HAY <= token < FIRST_DIGIT for token in prompt[:-1] if token not in found)
    places = {int(prompt.tolist().index(min(prompt.tolist()))) for prompt in prompts}
    assert len(places) > 15  # anywhere


def test_phases_make_prompts_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def told(rows: int, prompt: int, generator: torch.Generator) -> Any:
        seen.append((rows, prompt))
        return drawn(rows, prompt, generator)

    monkeypatch.setattr(needles, "drawn", told)
    losses: list[float] = []
    train(Training(steps=60, warm_up=10), BRIEF, lambda _, loss: losses.append(loss))
    assert seen == [(8, 16)] * 30 + [(4, 24)] * 30
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])


def test_rows_of_the_table(task: Task) -> None:
    """Dense first; patterns that keep everything, or begin after the end, are dense; the others multiply less."""
    options = ("sparse_keep=1", "sparse_keep=0.3,sparse_skip=1", "sparse_keep=0.3", "sparse_keep=0.3,sparse_select=window")
    whole, every, never, chosen, window = quality_rows(task, 0, options)
    for row in (whole, every, never):
        assert row["identical"] == row["agree"] == 1
    assert (whole["work"], never["work"]) == (1, 1)
    assert every["kept"] == pytest.approx(1)
    assert 0 < chosen["kept_least"] <= chosen["kept"] < 1
    assert chosen["kept"] > window["kept"]
    assert window["work"] < chosen["work"] < 1 < every["work"]


def test_work_in_numbers(task: Task) -> None:
    """Eight forwards, two of them full; choosing costs half a forward's attention, and nothing where no attention is looked at."""
    for select, extra in (("isolated", 0.5), ("sinks", 0.0)):
        method = f"static:block=8,attention=sparsed,sparse_tile=4,sparse_keep=0.25,sparse_select={select}"
        run = run_method(task.model, method, task.asked, NEEDLES)
        assert work(task, method, run, Kept(density=[0.2, 0.3])) == pytest.approx((2 + extra + 6 * 0.25) / 8)

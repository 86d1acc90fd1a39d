"""dKV-Cache's Greedy variant: exactly what was decided, what will be, and a window of positions near them is fed."""

from __future__ import annotations

import numpy as np
import pytest
from diffusion_models import Make
from witnesses import watch

from paceline.denoising.dkv import around, span

PROMPTS = [list(range(3, 13))]


@pytest.mark.parametrize("center", ["prev", "next"])
@pytest.mark.parametrize("per_step", [1, 2])
def test_rows_of_greedy(make: Make, center: str, per_step: int) -> None:
    """What the last step decided, what this one decides, and a window of masked positions around one of them."""
    for window in (0, 3):
        options = f"block=8,algorithm=random,per_step={per_step},refresh=4,dkv_window={window},dkv_center={center}"
        llm = make("llada", f"static:cache=dkv-greedy,{options}")
        watched = watch(llm)
        llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
        looks = [*watched.seen, (0, np.zeros(34, dtype=bool), [])]
        for (_, before, _), (step, now, fed), (_, after, _) in zip(looks, looks[1:], looks[2:], strict=False):
            if step % 4 == 0:
                assert len(fed) == 34
                continue
            late, coming = set(np.flatnonzero(before & ~now)), set(np.flatnonzero(now & ~after))
            beside = set(fed) - late - coming
            assert late | coming <= set(fed)
            assert all(now[at] for at in beside)
            assert len(beside) == min(window * per_step, int(now.sum()) - per_step)
            assert beside == around(now, sorted(late if center == "prev" else coming), late | coming, window)


def test_a_window_of_the_papers_formula(make: Make) -> None:
    """Everything from half a window before to half a window behind, decided or not."""
    assert span(10, [4], 4) == {2, 3, 4, 5, 6}
    assert span(10, [4], 3) == {2, 3, 4, 5}
    assert span(10, [0, 9], 2) == {0, 1, 8, 9}
    assert span(10, [4], 0) == {4}
    llm = make("llada", "static:block=8,algorithm=random,cache=dkv-greedy,dkv_window=6,dkv_walk=span,refresh=4")
    watched = watch(llm)
    llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    decided = 0
    for (_, before, _), (step, now, fed) in zip(watched.seen, watched.seen[1:], strict=False):
        if step % 4:
            (late,) = np.flatnonzero(before & ~now)
            assert {at for at in range(late - 3, late + 4) if 0 <= at < 34} <= set(fed)
            decided += sum(not now[at] for at in fed if at != late)
    assert decided > 0


def test_windows_walk_outwards_over_masked_positions() -> None:
    masked = np.array([0, 1, 1, 0, 0, 1, 1, 1], dtype=bool)
    assert around(masked, [4], set(), 1) == {5}
    assert around(masked, [4], set(), 2) == {5, 2}  # two away on both sides: left first
    assert around(masked, [4], set(), 3) == {5, 2, 6}
    assert around(masked, [4], {5}, 2) == {2, 6}
    assert around(masked, [4, 3], set(), 2) == {5, 2, 1, 6}
    assert around(masked, [4], set(), 99) == {1, 2, 5, 6, 7}


def test_greedy_feeds_few_rows(make: Make) -> None:
    """At most two, a window and the refreshes: the closed form of one position per step, window 4."""
    (output,) = make("llada", "static:block=8,algorithm=random,cache=dkv-greedy").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    last = sum(2 + min(4, 8 - step - 1) for step in (1, 3, 5, 7))  # in the last block masks run out
    assert output.stats.rows == 3 * 4 * 34 + 2 * 4 * 6 + last

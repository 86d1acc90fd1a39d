"""End-of-text prediction: canvases shrink behind a decided end, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diffusion_models import EOS, Make

from paceline.core.errors import UsageError
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas
from paceline.engine.llm import LLM

PROMPTS = [list(range(3, 13)), [4, 9], [30, 31, 32, 5, 6]]
NEVER, OFTEN = Sampling(logit_bias={EOS: -1e9}), Sampling(logit_bias={EOS: 2.0})


class Lengths:
    """Records the length of every canvas at every step."""

    def __init__(self) -> None:
        self.found: dict[int, list[int]] = {}

    def tokens(self, step: int | None, canvas: Canvas) -> None:
        self.found.setdefault(id(canvas), []).append(canvas.length)

    def logits(self, step, canvas, logits):  # type: ignore[no-untyped-def]
        return logits


def run(llm: LLM, sampling: Sampling, length: int = 24) -> tuple[list[list[int]], list[int]]:
    outputs = llm.generate(PROMPTS, sampling, max_tokens=length, ignore_eos=True)
    return [output.token_ids for output in outputs], [output.stats.rows for output in outputs]


@pytest.mark.parametrize("method", ["static:block=8", "threshold:block=8,threshold=0.4", "static:block=8,cache=prefix", "factor:block=8"])
def test_answers_without_an_end_are_the_same(make: Make, method: str) -> None:
    for mode in ("committed", "reference"):
        assert run(make("llada", f"{method},eotp={mode}"), NEVER) == run(make("llada", method), NEVER)


@pytest.mark.parametrize(
    "method", ["static:block=8", "static:block=8,cache=dual", "static:block=8,cache=prefix", "threshold:threshold=0.4"]
)
@pytest.mark.parametrize("mode", ["committed", "reference"])
def test_canvases_shrink_and_outputs_keep_their_length(make: Make, method: str, mode: str) -> None:
    llm, plain = make("llada", f"{method},eotp={mode}"), make("llada", f"{method},early_exit=false")
    lengths = Lengths()
    llm.engine.denoiser = replace(llm.engine.denoiser, hooks=lengths)
    (outputs, rows), (_, most) = run(llm, OFTEN), run(plain, OFTEN)
    assert all(len(output) == 24 for output in outputs)
    assert sum(rows) < sum(most)
    for found in lengths.found.values():
        assert (np.diff(found) <= 0).all()
    assert any(found[-1] < found[0] for found in lengths.found.values())
    for output in outputs:
        if EOS in output:
            assert set(output[output.index(EOS) :]) == {EOS}


def test_caches_that_forget_nothing_change_nothing(make: Make) -> None:
    plain = run(make("llada", "static:block=8,eotp=committed"), OFTEN)[0]
    for cache in ("prefix", "dual", "dkv-decode"):
        assert run(make("llada", f"static:block=8,eotp=committed,cache={cache},refresh=1"), OFTEN)[0] == plain


def test_batches_are_single_runs(make: Make) -> None:
    llm = make("llada", "threshold:block=8,threshold=0.4,eotp=committed")
    alone = [llm.generate([prompt], OFTEN, max_tokens=24, ignore_eos=True)[0].token_ids for prompt in PROMPTS]
    assert run(llm, OFTEN)[0] == alone


def test_an_end_at_the_first_position_is_the_whole_answer(make: Make) -> None:
    """Canvas: prompt and one token; what the prompt holds does not count."""
    llm = make("llada", "threshold:block=8,threshold=0,eotp=committed")
    output = llm.generate([[3, EOS, 5]], Sampling(logit_bias={EOS: 1e9}), max_tokens=24, ignore_eos=True)[0]
    assert output.token_ids == [EOS] * 24
    assert output.stats.forwards == 1


def test_it_ends_outputs_as_usual(make: Make) -> None:
    llm = make("llada", "static:block=8,eotp=committed")
    for output in llm.generate(PROMPTS, OFTEN, max_tokens=24):
        assert EOS not in output.token_ids[:-1]


def test_what_it_does_not_go_with(make: Make) -> None:
    with pytest.raises(UsageError, match="computes nothing behind a block"):
        make("sdar", "static:eotp=committed")
    with pytest.raises(UsageError, match="canvas of fixed length"):
        make("llada", "freedave:eotp=committed")

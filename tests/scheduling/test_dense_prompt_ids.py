"""Ids in a prompt that look like an end or like padding mean nothing; two bugs of the reference, for which they do, are noticed."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt
import pytest
from dense_engines import EOS, alone, ids, make, noisy, prompts, target
from jaxtyping import Float
from torch import Tensor

from paceline.bench.match import match
from paceline.core.batch import Segment
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.memory.runs import Run
from paceline.scheduling.continuous import Scheduler
from paceline.scheduling.dense.row import DenseRow
from paceline.verification.verifier import Verifier

PAD, TOKENS = 0, 16


class EndsAnywhere(Verifier):
    """A row has ended as soon as an end-of-sequence id stands anywhere in it, its prompt included."""

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        verdicts = super().judge(sequences, trees, logits)
        return [Verdict((), (EOS,)) if EOS in sequence.tokens else verdict for sequence, verdict in zip(sequences, verdicts, strict=True)]


class PaddingById(DenseRunner):
    """Padding is whatever carries the padding id: where that occurs as text, text is masked."""

    scheduler: Scheduler

    def _visible(self, segment: Segment, row: DenseRow, columns: Run, first: int, width: int) -> npt.NDArray[np.bool_]:
        visible = super()._visible(segment, row, columns, first, width)
        text = next(active.sequence.tokens for active in self.scheduler.running if active.memory is row)
        held = [column for low, high in row.columns for column in range(low, high)][: row.length]
        mistaken = [column for column, token in zip(held, text, strict=False) if token == PAD]
        visible[columns[0] - first : columns[1] - first, mistaken] = False
        return visible


@pytest.fixture(scope="module")
def base() -> LLM:
    return target()


def without(token: int, other: int) -> list[list[int]]:
    """The prompts with another id in place of one."""
    return [[other if each == token else each for each in prompt] for prompt in prompts()]


def test_an_end_looked_for_in_the_prompt_is_noticed(base: LLM) -> None:
    """The reference says nothing at all behind such a prompt, as chat templates make them."""
    asked = [prompt for prompt in prompts() if EOS in prompt]
    assert len(asked) > 5
    expected = alone(base, asked, TOKENS, ignore_eos=False)
    llm = make(base, noisy(base, 0.2), "eqspec:batch=4")
    assert ids(llm, asked, TOKENS, ignore_eos=False) == expected
    llm.engine.verifier = EndsAnywhere()
    assert ids(llm, asked, TOKENS, ignore_eos=False) == [[EOS]] * len(asked)
    assert match(expected, [[EOS]] * len(asked)).partial < 0.5
    clean = without(EOS, 3)
    assert ids(llm, clean, TOKENS, ignore_eos=False) == alone(base, clean, TOKENS, ignore_eos=False)


def test_padding_recognised_by_its_id_is_noticed(base: LLM) -> None:
    asked = prompts()
    assert all(PAD in prompt for prompt in asked if len(prompt) > 2)
    llm = make(base, noisy(base, 0.2), "eqspec:batch=4")
    expected = alone(base, asked, TOKENS)
    assert ids(llm, asked, TOKENS) == expected
    right = llm.engine.runner
    assert isinstance(right, DenseRunner)
    broken = PaddingById(right.decoder, right.dense)
    broken.scheduler = llm.engine.scheduler
    llm.engine.runner = broken
    assert match(expected, ids(llm, asked, TOKENS)).exact < 0.75

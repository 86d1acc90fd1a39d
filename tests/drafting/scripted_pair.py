"""An encoder-decoder whose output is written in advance: what a method costs on it can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from paceline.bench.audit.toy_pair import toy_pair
from paceline.core.batch import ForwardBatch, ForwardResult, Taps
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.output import Output
from paceline.models.decoder import Decoder

VOCABULARY, EOS, START = 64, 63, 62


def scripted(target: Sequence[int]) -> Decoder:
    """A decoder that says `target` and then EOS, whatever it reads."""
    decoder = toy_pair(VOCABULARY, eos=(EOS,), start=(START,), max_positions=256)

    def forward(batch: ForwardBatch, keys: Any, values: Any, exact: Any = None) -> ForwardResult:
        rows = range(batch.rows) if batch.logit_rows is None else batch.logit_rows
        logits = torch.zeros(len(rows), VOCABULARY, dtype=torch.float64)
        for at, row in enumerate(rows):
            position = batch.positions[row]
            logits[at, target[position] if position < len(target) else EOS] = 1.0
        return ForwardResult(logits, Taps())

    decoder.forward = forward  # type: ignore[method-assign]
    return decoder


def answer(target: Sequence[int], source: Sequence[int], method: str = "iad", max_tokens: int = 200) -> Output:
    """What a method makes of a source when the model says `target`."""
    llm: LLM = load(scripted(target), method, pack=False, device="cpu", kv_tokens=1024)
    (output,) = llm.generate(list(source), max_tokens=max_tokens)
    return output

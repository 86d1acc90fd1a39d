"""Sampling in mixed batches: the output of every row follows the law of plain sampling after its own prompt."""

from __future__ import annotations

from collections import Counter

import pytest
from dense_engines import DENSE, make

from paceline.bench.audit.laws import chi_square, law_of_model, plain_law
from paceline.bench.audit.toy import toy_decoder
from paceline.core.request import Request
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.engine.load import load

VOCABULARY, LENGTH, SAMPLES = 6, 3, 400
P_LIMIT = 1e-6  # a right engine fails once in a million seeds
PROMPTS = ((1, 2, 3, 1, 2), (4,), (5, 0, 5, 0, 5, 0, 1, 1))
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def models() -> tuple[object, object]:
    target, draft = (toy_decoder(VOCABULARY, seed=seed, layers=layers, sharpness=1.2) for seed, layers in ((0, 2), (100, 1)))
    return load(target, "none", device="cpu", pack=False, kv_tokens=64), draft


@pytest.mark.parametrize("name", DENSE)
def test_every_row_follows_its_law(models: tuple[object, object], name: str) -> None:
    target, draft = models
    llm = make(target, draft, f"{name}:batch=48", "draft-model:length=2")  # type: ignore[arg-type]
    counts = {prompt: Counter[tuple[int, ...]]() for prompt in PROMPTS}
    sequences = []
    for index in range(SAMPLES):
        for prompt in PROMPTS:
            sampling = Sampling(temperature=TEMPERATURE, seed=key(9, index, len(prompt)))
            sequences += llm.engine.submit(Request(prompt, sampling, max_tokens=LENGTH, ignore_eos=True))
    while not llm.engine.idle:
        llm.engine.step()
    for sequence in sequences:
        counts[sequence.request.ids][tuple(sequence.output)] += 1
    decoder = target.runner.decoder  # type: ignore[attr-defined]
    for prompt in PROMPTS:
        law = plain_law(law_of_model(decoder, prompt, Sampling(temperature=TEMPERATURE)), VOCABULARY, LENGTH)
        assert chi_square(counts[prompt], law).p_value > P_LIMIT
        sharper = plain_law(law_of_model(decoder, prompt, Sampling(temperature=TEMPERATURE - 0.3)), VOCABULARY, LENGTH)
        assert chi_square(counts[prompt], sharper).p_value < P_LIMIT  # as many samples tell a law nearby apart

"""Aggressive decoding says what greedy decoding says, token for token; caches hold what they should after every step."""

from __future__ import annotations

import pytest
import torch

from paceline.bench.audit.toy_pair import toy_pair
from paceline.core.request import Request
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.drafting.iad import SourceIndex
from paceline.engine.llm import LLM
from paceline.engine.load import load

VOCABULARY, EOS = 24, 5
SOURCES = 500


def sources(count: int, seed: int, longest: int = 20) -> list[list[int]]:
    """Random sources, some with repeated stretches; ids 0 and EOS occur in them."""
    found = []
    for index in range(count):
        length = 1 + key(seed, index) % longest
        alphabet = 4 if index % 3 == 0 else VOCABULARY
        found.append([key(seed, index, at) % alphabet for at in range(length)])
    return found


def engine(seed: int, method: str, **options: object) -> LLM:
    pair = toy_pair(VOCABULARY, seed=seed, noise=0.4, eos=(EOS,))
    return load(pair, method, pack=False, device="cpu", kv_tokens=8000, **options)  # type: ignore[arg-type]


def outputs(llm: LLM, asked: list[list[int]], max_tokens: int, sampling: Sampling | None = None) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(asked, sampling, max_tokens)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_identity(seed: int) -> None:
    """At three limits, two of which cut accepted runs in the middle."""
    asked = sources(SOURCES, seed)
    for part, max_tokens in ((asked[:300], 24), (asked[300:400], 7), (asked[400:], 3)):
        plain, fast = engine(seed, "none").generate(part, None, max_tokens), engine(seed, "iad").generate(part, None, max_tokens)
        assert [output.token_ids for output in fast] == [output.token_ids for output in plain]
        assert [output.finish_reason for output in fast] == [output.finish_reason for output in plain]
        forwards = [sum(output.stats.forwards for output in found) for found in (plain, fast)]
        assert forwards[1] < 0.8 * forwards[0]  # the comparison says something: much was copied, and some was not
        assert any(output.stats.accepted < output.stats.drafted for output in fast)


def test_runs_are_cut_at_eos_and_at_the_limit() -> None:
    asked = sources(200, 4)
    fast = engine(4, "iad").generate(asked, None, 24)
    cut = [output for output in fast if output.token_ids[-1] == EOS and output.stats.runs[-1] > 1]
    assert cut
    assert all(EOS not in output.token_ids[:-1] for output in fast)
    limited = engine(4, "iad").generate(asked, None, 5)
    assert any(output.stats.runs[-1] > 1 and len(output.token_ids) == 5 for output in limited)


@pytest.mark.parametrize("method", ["iad:max_draft=2", "iad:max_len=6", "iad:min_gram=2,max_gram=4", "iad+prompt-lookup"])
def test_options_change_no_token(method: str) -> None:
    asked = sources(64, 5)
    assert outputs(engine(5, method), asked, 20) == outputs(engine(5, "none"), asked, 20)


def test_guessing_the_first_of_several_places_costs_rows_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a suffix must be unique: the first occurrence is as correct, and judges wide drafts for nothing."""

    def first_places(index: SourceIndex) -> None:
        index.ends = {}
        for size in index.sizes:
            for end in range(size, len(index.source) + 1):
                index.ends.setdefault(index.source[end - size : end], end)

    asked = sources(200, 9)
    plain = outputs(engine(9, "none"), asked, 20)
    unique = engine(9, "iad").generate(asked, None, 20)
    monkeypatch.setattr(SourceIndex, "__post_init__", first_places)
    guessed = engine(9, "iad").generate(asked, None, 20)
    assert [output.token_ids for output in unique] == [output.token_ids for output in guessed] == plain
    wasted = [sum(output.stats.drafted - output.stats.accepted for output in found) for found in (unique, guessed)]
    assert wasted[1] > 1.2 * wasted[0]


def test_coupled_samples_are_those_of_plain_sampling() -> None:
    asked, sampling = sources(100, 6), Sampling(temperature=0.7, top_p=0.95, seed=11)
    plain = outputs(engine(6, "none"), asked, 16, sampling)
    assert outputs(engine(6, "iad", coupled=True), asked, 16, sampling) == plain
    assert outputs(engine(6, "iad"), asked, 16, sampling) == plain  # its drafts are chosen, not drawn
    assert plain != outputs(engine(6, "none"), asked, 16)


def test_penalties_see_the_target_alone() -> None:
    asked, sampling = sources(60, 7), Sampling(repetition_penalty=1.3, no_repeat_ngram=2)
    assert outputs(engine(7, "iad"), asked, 16, sampling) == outputs(engine(7, "none"), asked, 16, sampling)


def test_caches_after_every_step() -> None:
    """Own keys: all tokens but the pending one. Keys of the source: the very same memory from first to last."""
    llm = engine(8, "iad", max_sequences=4)
    for source in sources(12, 8):
        llm.engine.submit(Request(llm.runner.decoder.config.start, max_tokens=16, source=tuple(source)))
    first: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
    while not llm.engine.idle:
        llm.engine.step()
        for active in llm.engine.scheduler.running:
            sequence, cross = active.sequence, active.memory.cross
            assert active.memory.length == len(sequence.tokens) - 1
            tensors = [*cross.keys, *cross.values]
            pointers, contents = first.setdefault(sequence.uid, ([t.data_ptr() for t in tensors], [t.clone() for t in tensors]))
            assert [tensor.data_ptr() for tensor in tensors] == pointers
            assert all(torch.equal(tensor, before) for tensor, before in zip(tensors, contents, strict=True))
            assert all(len(tensor) == len(sequence.request.source) for tensor in tensors)
    assert len(first) >= 8  # the others ended with their first step
    assert llm.ledger.live["cross_kv"] == 0


def test_a_decoder_only_model_copies_from_its_prompt() -> None:
    from toy_engines import make, prompts, toy_llm

    target = toy_llm(1)
    asked = prompts(12)
    plain, fast = make(target, target, "none"), make(target, target, "iad")
    assert outputs(fast, asked, 24) == outputs(plain, asked, 24)

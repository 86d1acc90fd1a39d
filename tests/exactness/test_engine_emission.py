"""Where outputs end: limits, end-of-sequence ids, stop ids and stop strings cut in one place, whatever was drafted and accepted."""

from __future__ import annotations

import pytest
from toy_engines import ALPHABET, DRAFTING, METHODS, VOCABULARY, ids, make, prompts, toy_llm

from paceline.bench.audit.oracle import OracleDrafter
from paceline.bench.audit.rig import Rig
from paceline.core.request import FinishReason
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM

ASKED = prompts(4)
TOKENS = 18
EOS = 18


@pytest.fixture(scope="module")
def pair() -> tuple[LLM, LLM]:
    return toy_llm(1), toy_llm(2, layers=1)


@pytest.fixture(scope="module")
def long(pair: tuple[LLM, LLM]) -> list[list[int]]:
    """What plain decoding says when nothing stops it."""
    return ids(make(*pair, "none"), ASKED, max_tokens=TOKENS)


@pytest.mark.parametrize("method", METHODS)
def test_max_tokens_is_exact(pair: tuple[LLM, LLM], long: list[list[int]], method: str) -> None:
    llm = make(*pair, method)
    for limit in (1, 2, 3, 5, 11):
        outputs = llm.generate(ASKED, max_tokens=limit)
        assert [output.token_ids for output in outputs] == [tokens[:limit] for tokens in long]
        assert all(output.finish_reason is FinishReason.LENGTH for output in outputs)


@pytest.mark.parametrize("method", METHODS)
def test_outputs_end_with_the_first_end_of_sequence(pair: tuple[LLM, LLM], long: list[list[int]], method: str) -> None:
    """The same weights with an end-of-sequence id: the id ends the output and is its last token."""
    assert sum(EOS in tokens for tokens in long) >= 2
    ended = toy_llm(1, eos=(EOS,))
    outputs = make(ended, toy_llm(2, layers=1, eos=(EOS,)), method).generate(ASKED, max_tokens=TOKENS)
    for output, tokens in zip(outputs, long, strict=True):
        ends = EOS in tokens
        assert output.token_ids == (tokens[: tokens.index(EOS) + 1] if ends else tokens)
        assert output.finish_reason is (FinishReason.STOP if ends else FinishReason.LENGTH)
    ignoring = make(ended, pair[1], method).generate(ASKED, max_tokens=TOKENS, ignore_eos=True)
    assert [output.token_ids for output in ignoring] == long


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("special", [0, EOS])
def test_special_ids_in_the_prompt_mean_nothing(pair: tuple[LLM, LLM], method: str, special: int) -> None:
    asked = [[special], [special, 3, special, special], [5, special, 3, 4, special, 3, 4, special]]
    plain = ids(make(*pair, "none"), asked, max_tokens=TOKENS)
    ended = make(toy_llm(1, eos=(special,)), toy_llm(2, layers=1, eos=(special,)), method)
    assert ids(ended, asked, max_tokens=TOKENS, ignore_eos=True) == plain
    cut = [tokens[: tokens.index(special) + 1] if special in tokens else tokens for tokens in plain]
    assert ids(ended, asked, max_tokens=TOKENS) == cut


@pytest.mark.parametrize("method", METHODS)
def test_stop_ids(pair: tuple[LLM, LLM], long: list[list[int]], method: str) -> None:
    stop = long[0][4]
    outputs = make(*pair, method).generate(ASKED, max_tokens=TOKENS, stop_ids=[stop])
    for output, tokens in zip(outputs, long, strict=True):
        assert output.token_ids == (tokens[: tokens.index(stop) + 1] if stop in tokens else tokens)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_stop_strings_across_token_borders(pair: tuple[LLM, LLM], long: list[list[int]], method: str, start: int, length: int) -> None:
    """A stop string of several tokens, wherever the accepted runs happen to end."""
    whole = "".join(ALPHABET[token] for token in long[3])
    stop = whole[start : start + length]
    place = whole.index(stop)
    llm = make(*pair, method)
    (output,) = llm.generate([ASKED[3]], max_tokens=TOKENS, stop=[stop, "nothing like it"])
    assert output.text == whole[:place]
    assert output.token_ids == long[3][: place + length]
    assert output.finish_reason is FinishReason.STOP
    chunks = list(llm.stream(ASKED[3], max_tokens=TOKENS, stop=[stop, "nothing like it"]))
    assert "".join(chunk.text for chunk in chunks) == whole[:place]
    assert [token for chunk in chunks for token in chunk.token_ids] == output.token_ids


@pytest.mark.parametrize("method", METHODS)
def test_the_context_ends_outputs(pair: tuple[LLM, LLM], method: str) -> None:
    context = pair[0].engine.context
    prompt = [at % VOCABULARY for at in range(context - 5)]
    plain, other = (make(*pair, name).generate([prompt], max_tokens=50)[0] for name in ("none", method))
    assert plain.token_ids == other.token_ids
    assert len(prompt) + len(other.token_ids) == context
    assert other.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("branches", [False, True], ids=["chains", "trees"])
@pytest.mark.parametrize("mistakes", [0.0, 0.3])
def test_runs_of_every_length(pair: tuple[LLM, LLM], long: list[list[int]], branches: bool, mistakes: float) -> None:
    """Drafts of known quality: a perfect one emits its length plus one per forward, and statistics add up."""
    answers = {tuple(prompt): tokens for prompt, tokens in zip(ASKED, long, strict=True)}
    drafter = OracleDrafter(answers, VOCABULARY, length=5, mistakes=mistakes, branches=branches)
    llm = Rig(pair[0]).wired(drafter, list(answers), TOKENS)
    outputs = llm.generate(ASKED, max_tokens=TOKENS)
    assert [output.token_ids for output in outputs] == long
    for output in outputs:
        stats = output.stats
        assert sum(stats.runs) == len(output.token_ids) == TOKENS
        assert len(stats.runs) == stats.forwards
        assert stats.accepted == TOKENS - stats.forwards
        assert sum(stats.accepted_by_depth) == stats.accepted
        if mistakes == 0.0:
            assert stats.runs == (6, 6, 6)
            assert stats.acceptance_by_depth == (1.0,) * 5


@pytest.mark.parametrize("method", DRAFTING)
def test_logprobs_equal_those_of_plain_decoding(pair: tuple[LLM, LLM], method: str) -> None:
    for sampling in (Sampling(logprobs=3), Sampling(temperature=0.7, seed=3, logprobs=2)):
        plain = make(*pair, "none").generate(ASKED, sampling, 10)
        other = make(*pair, method, coupled=True).generate(ASKED, sampling, 10)
        for a, b in zip(plain, other, strict=True):
            assert a.logprobs is not None
            assert b.logprobs is not None
            assert [entry.token for entry in a.logprobs] == [entry.token for entry in b.logprobs] == b.token_ids
            assert [entry.logprob for entry in a.logprobs] == pytest.approx([entry.logprob for entry in b.logprobs], abs=1e-9)
            assert [[token for token, _ in entry.top] for entry in a.logprobs] == [
                [token for token, _ in entry.top] for entry in b.logprobs
            ]

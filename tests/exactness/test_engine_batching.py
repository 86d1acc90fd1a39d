"""Nothing that happens to other sequences changes an output: batching, chunked prefill, preemption, prefix cache, priorities, samples."""

from __future__ import annotations

import pytest
import torch
from toy_engines import DRAFTING, METHODS, VOCABULARY, ids, make, overbook, prompts, toy_llm

from paceline.bench.audit.toy import toy_decoder
from paceline.core.request import Request
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load

GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=5)
ASKED = prompts(5)
TOKENS = 14


@pytest.fixture(scope="module")
def pair() -> tuple[LLM, LLM]:
    return toy_llm(1), toy_llm(2, layers=1)


@pytest.fixture(scope="module")
def alone(pair: tuple[LLM, LLM]) -> dict[str, list[list[int]]]:
    """Plain decoding of every prompt by itself."""
    found = {}
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        plain = make(*pair, "none", prefix_cache=False)
        found[name] = [ids(plain, [prompt], sampling, TOKENS)[0] for prompt in ASKED]
    assert found["greedy"] != found["sampled"]
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_rows": 3, "max_sequences": 3}, {"kv_tokens": 90, "max_rows": 16}, {"kv_tokens": 56, "prefix_cache": False}],
    ids=["batched", "chunked", "tight memory", "tighter memory"],
)
def test_outputs_do_not_depend_on_company(
    pair: tuple[LLM, LLM], alone: dict[str, list[list[int]]], method: str, options: dict[str, int]
) -> None:
    assert ids(overbook(make(*pair, method, **options)), ASKED, GREEDY, TOKENS) == alone["greedy"]
    assert ids(overbook(make(*pair, method, coupled=True, **options)), ASKED, SAMPLED, TOKENS) == alone["sampled"]


@pytest.mark.parametrize("method", METHODS)
def test_tight_memory_really_preempts(pair: tuple[LLM, LLM], method: str) -> None:
    """The cases above would prove nothing if everything fitted."""
    outputs = overbook(make(*pair, method, kv_tokens=56, prefix_cache=False)).generate(ASKED, GREEDY, TOKENS)
    assert sum(output.stats.preemptions for output in outputs) > 0


def test_one_row_per_forward(pair: tuple[LLM, LLM], alone: dict[str, list[list[int]]]) -> None:
    assert ids(make(*pair, "draft-model:length=3", max_rows=1), ASKED, GREEDY, TOKENS) == alone["greedy"]


@pytest.mark.parametrize("method", DRAFTING)
def test_uncoupled_samples_do_not_depend_on_company_either(pair: tuple[LLM, LLM], method: str) -> None:
    """Rejection sampling gives other samples than plain decoding, but the same ones in any batch. Whoever drafts by the clock does not."""
    if method in ("auto", "stand"):
        pytest.skip("how much it drafts depends on measured time")
    together = ids(make(*pair, method), ASKED, SAMPLED, TOKENS)
    assert together == [ids(make(*pair, method), [prompt], SAMPLED, TOKENS)[0] for prompt in ASKED]


@pytest.mark.parametrize("method", METHODS)
def test_arrival_in_the_middle(pair: tuple[LLM, LLM], alone: dict[str, list[list[int]]], method: str) -> None:
    llm = make(*pair, method, max_rows=7)
    sequences = []
    for at, prompt in enumerate(ASKED):
        sequences += llm.engine.submit(Request(tuple(prompt), max_tokens=TOKENS, priority=at % 2))
        for _ in range(3):
            llm.engine.step()
    while not llm.engine.idle:
        llm.engine.step()
    assert [sequence.output for sequence in sequences] == alone["greedy"]


@pytest.mark.parametrize("method", ["none", "draft-model:length=3", "prompt-lookup"])
@pytest.mark.parametrize("kv_tokens", [2000, 150])
def test_samples_of_one_prompt(pair: tuple[LLM, LLM], method: str, kv_tokens: int) -> None:
    """n samples equal n requests with the samples' own seeds, whether the prompt's memory is shared or not."""
    prompt = ASKED[3]
    sampling = Sampling(temperature=0.9, seed=11, n=4)
    (output,) = make(*pair, method, coupled=True, kv_tokens=kv_tokens).generate([prompt], sampling, 12)
    samples = [sample.token_ids for sample in output.samples]
    (plain,) = make(*pair, "none").generate([prompt], sampling, 12)
    assert samples == [sample.token_ids for sample in plain.samples]
    assert len({tuple(sample) for sample in samples}) > 1
    assert samples[0] == ids(make(*pair, "none"), [prompt], Sampling(temperature=0.9, seed=11), 12)[0]


def test_prefix_cache_is_used_and_changes_nothing(pair: tuple[LLM, LLM], alone: dict[str, list[list[int]]]) -> None:
    llm = make(*pair, "draft-model:length=3")
    first = ids(llm, ASKED, GREEDY, TOKENS)
    again = llm.generate(ASKED, GREEDY, TOKENS)
    assert first == [output.token_ids for output in again] == alone["greedy"]
    assert all(output.stats.cached_prompt_tokens == output.stats.prompt_tokens - 1 for output in again)


def test_sliding_window(pair: tuple[LLM, LLM]) -> None:
    """A window shorter than the context, with every method."""
    target = toy_llm(3, window=6)
    plain = ids(make(target, pair[1], "none", prefix_cache=False), ASKED, GREEDY, TOKENS)
    assert plain != ids(make(toy_llm(3), pair[1], "none"), ASKED, GREEDY, TOKENS)
    for method in DRAFTING:
        assert ids(make(target, pair[1], method, max_rows=9), ASKED, GREEDY, TOKENS) == plain, method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_and_fused_kernels(dtype: torch.dtype) -> None:
    """The fast path of real models, in bit-exact mode so that equal tokens do not hang on luck."""
    decoders = [toy_decoder(VOCABULARY, seed=seed, layers=layers, dtype=dtype) for seed, layers in ((1, 2), (2, 1))]
    for decoder in decoders:
        decoder.pack()
    target, draft = (load(decoder, "none", device="cpu", kv_tokens=4, exact=True) for decoder in decoders)
    plain = [ids(make(target, draft, "none", exact=True, prefix_cache=False), [prompt], GREEDY, TOKENS)[0] for prompt in ASKED]
    methods = METHODS if decoders[0].stack is not None else ("prompt-lookup", "draft-model:length=3")  # trees need the kernels
    for method in methods:
        for options in ({}, {"max_rows": 5}, {"kv_tokens": 90}):
            assert ids(overbook(make(target, draft, method, exact=True, **options)), ASKED, GREEDY, TOKENS) == plain, (method, options)

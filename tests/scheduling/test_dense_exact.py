"""Every batching strategy gives every prompt the output of plain decoding by itself, in the order asked, whoever shares the batch."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from dense_engines import DENSE, EOS, alone, batching, ids, make, noisy, prompts, target

from paceline.bench.audit.certificate import Kind
from paceline.bench.audit.identity import compare
from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.toy import toy_decoder
from paceline.core.errors import UsageError
from paceline.core.request import Request
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load

STRATEGIES = ("ragged", *DENSE)
GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.9, top_p=0.95, seed=3)
NOISE = (0.02, 0.1, 0.25, 0.6)  # drafts from nearly always right to nearly always wrong


@pytest.fixture(scope="module")
def base() -> LLM:
    return target()


@pytest.fixture(scope="module")
def plain(base: LLM) -> list[list[int]]:
    """Greedy output of every prompt by itself."""
    found = alone(base, prompts())
    assert len({tuple(tokens) for tokens in found}) > 5  # the model looks at its context
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize(("length", "noise"), [(1, NOISE[1]), (3, NOISE[2]), (5, NOISE[0]), (8, NOISE[3])])
def test_greedy_equals_plain_decoding(base: LLM, plain: list[list[int]], batch: int, length: int, noise: float) -> None:
    draft = noisy(base, noise)
    for name in STRATEGIES:
        llm = make(base, draft, batching(name, batch), f"draft-model:length={length}")
        assert ids(llm, prompts()) == plain, name


def test_drafts_agree_more_or_less(base: LLM) -> None:
    """The noises above span acceptance from rare to usual; without raggedness the comparison would prove little."""
    rates = []
    for noise in NOISE:
        outputs = make(base, noisy(base, noise), "eqspec").generate(prompts(), GREEDY, 12, ignore_eos=True)
        rates.append(sum(output.stats.accepted for output in outputs) / sum(output.stats.drafted for output in outputs))
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.8
    assert rates[-1] < 0.25


@pytest.mark.parametrize("name", STRATEGIES)
def test_end_of_sequence(base: LLM, name: str) -> None:
    """Rows finish at different times; ids in the prompt that look like an end or like padding do nothing."""
    asked = prompts(16)
    expected = alone(base, asked, 24, ignore_eos=False)
    assert len({len(tokens) for tokens in expected}) > 3
    assert any(tokens[-1] == EOS for tokens in expected)
    assert all(tokens for tokens in expected)
    assert ids(make(base, noisy(base, 0.1), batching(name, 5)), asked, 24, ignore_eos=False) == expected


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("method", ["none", "prompt-lookup", "draft-model:length=3,branching=3x2x1", "dyspec", "lookahead", "stand"])
def test_other_drafts(base: LLM, plain: list[list[int]], name: str, method: str) -> None:
    """Trees, drafts without a model and no drafts at all go through the same rectangle."""
    assert ids(make(base, noisy(base, 0.25), batching(name, 3), method), prompts()) == plain


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_draft_that_is_the_target(name: str) -> None:
    """Every step gives K + 1 tokens; with the reference's lost bonus, K."""
    base, asked = target(eos=()), prompts(5)
    expected = alone(base, asked, 20)
    for option, per_step in (("", 5), ("reference_bonus=true", 4)):
        if name == "ragged" and option:
            continue
        strategy = batching(name, 4) + ("," + option if option else "")
        outputs = make(base, noisy(base, 0.0), strategy, "draft-model:length=4").generate(asked, GREEDY, 20, ignore_eos=True)
        assert [output.token_ids for output in outputs] == expected
        assert {output.stats.runs[:4] for output in outputs} == {(per_step,) * 4}, option


@pytest.mark.parametrize("name", STRATEGIES)
def test_sliding_windows_and_prompts_in_chunks(name: str) -> None:
    windowed = target(seed=3, window=6)
    asked = prompts()
    expected = alone(windowed, asked)
    assert expected != alone(target(seed=3), asked)
    assert ids(make(windowed, noisy(windowed, 0.1), batching(name, 3), max_rows=7), asked) == expected


@pytest.mark.parametrize("name", ["ragged", "eqspec", "exspec", "gap"])
def test_nobody_is_held_back_by_a_row_near_its_end(base: LLM, name: str) -> None:
    """Every row drafts up to its own limit: it takes as many steps as by itself, whatever others still have to say."""
    draft, limits = noisy(base, 0.1), [1, 2, 5, 16, 3, 9, 16, 4]

    def steps(strategy: str, together: bool) -> list[int]:
        llm = make(base, draft, strategy, "draft-model:length=5")
        sequences = []
        for prompt, limit in zip(prompts(), limits, strict=True):
            sequences += llm.engine.submit(Request(tuple(prompt), max_tokens=limit, ignore_eos=True))
            while not together and not llm.engine.idle:
                llm.engine.step()
        while not llm.engine.idle:
            llm.engine.step()
        return [sequence.stats.forwards for sequence in sequences]

    assert steps(batching(name, 8), together=True) == steps("ragged", together=False)


@pytest.mark.parametrize("name", DENSE)
def test_preemption(base: LLM, plain: list[list[int]], name: str) -> None:
    """A budget that the batch outgrows: somebody starts again later and says the same."""
    llm = make(base, noisy(base, 0.1), batching(name, 4), kv_tokens=64)
    llm.engine.scheduler._expected_share = 0.0  # admit as if outputs had no length at all
    outputs = llm.generate(prompts(), GREEDY, 12, ignore_eos=True)
    assert [output.token_ids for output in outputs] == plain
    assert sum(output.stats.preemptions for output in outputs) > 0


@pytest.mark.parametrize("name", DENSE)
def test_samples_do_not_depend_on_company(base: LLM, name: str) -> None:
    """Permuting rows, adding one, changing another one: no output changes, under greedy decoding and sampling."""
    asked = prompts()[:4]
    draft = noisy(base, 0.25)
    strategy = batching(name, 3)
    for sampling in (GREEDY, SAMPLED):
        single = [ids(make(base, draft, strategy), [prompt], 10, sampling)[0] for prompt in asked]
        for order in list(permutations(range(4)))[5::9]:
            found = ids(make(base, draft, strategy), [asked[at] for at in order], 10, sampling)
            assert found == [single[at] for at in order]
        assert ids(make(base, draft, strategy), [*asked, prompts()[5]], 10, sampling)[:4] == single
        changed = [*asked[:2], [5, 5, 5, 5, 5], asked[3]]
        found = ids(make(base, draft, strategy), changed, 10, sampling)
        assert [*found[:2], found[3]] == [*single[:2], single[3]]


@pytest.mark.parametrize("name", STRATEGIES)
def test_coupled_samples_equal_plain_sampling(base: LLM, name: str) -> None:
    asked = prompts()
    expected = alone(base, asked, 12, SAMPLED)
    assert expected != alone(base, asked)
    assert ids(make(base, noisy(base, 0.25), batching(name, 3), coupled=True), asked, 12, SAMPLED) == expected


@pytest.mark.parametrize("name", ["eqspec", "exspec"])
def test_samples_of_one_prompt(base: LLM, name: str) -> None:
    sampling = Sampling(temperature=0.9, seed=11, n=4)
    (plain,) = load(base, "none", device="cpu", kv_tokens=800).generate([prompts()[5]], sampling, 10)
    (found,) = make(base, noisy(base, 0.1), batching(name, 3), coupled=True).generate([prompts()[5]], sampling, 10)
    assert [sample.token_ids for sample in found.samples] == [sample.token_ids for sample in plain.samples]


@pytest.mark.parametrize("name", STRATEGIES)
def test_single_precision_differs_by_ties_only(name: str) -> None:
    single = load(toy_decoder(24, seed=1, dtype=torch.float32, max_positions=160), "none", device="cpu", kv_tokens=4, pack=False)
    draft = toy_decoder(24, seed=2, layers=1, dtype=torch.float32, max_positions=160)
    asked = prompts(12)
    found = ids(make(single, draft, batching(name, 4)), asked, 24)
    differences = compare(PlainPath(single.runner.decoder), asked, alone(single, asked, 24), found, GREEDY, name)
    assert [difference for difference in differences if difference.kind is not Kind.TIE] == []


@pytest.mark.parametrize("name", DENSE)
def test_the_kernels_make_padding_bit_exact(name: str) -> None:
    """In bfloat16, where near-ties abound: the kernels sum along a row's own path, which padding and gaps are no part of."""
    single, draft = (load(model, "none", device="cpu", dtype="bfloat16", kv_tokens=4) for model in ("pocket-code", "pocket-code-draft"))
    if single.runner.decoder.stack is None:
        pytest.skip("no compiler here")
    asked = [[40 * token + 9 for token in prompt] for prompt in prompts(5)]
    found = ids(make(single, draft, batching(name, 3), "draft-model:length=3,branching=2x1x1", exact=True), asked)
    assert found == alone(single, asked)


def test_bit_exact_mode_is_refused_without_them(base: LLM) -> None:
    with pytest.raises(UsageError, match="needs the kernels"):
        make(base, noisy(base, 0.0), "eqspec", exact=True)

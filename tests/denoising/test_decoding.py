"""Engine output equals decoding written down plainly, for every layout, cache and rule; other answers in the batch change nothing."""

from __future__ import annotations

import dataclasses

import pytest
from diffusion_models import BLOCK, EOS, MASK, VOCABULARY, Make, Reference
from plain_decoding import above, best, decode, decode_blocks

from paceline.core.request import FinishReason
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM

RULES = {"static": best(1), "static:per_step=3": best(3), "threshold:threshold=0.3": above(0.3)}
PROMPTS = [[5, 6, 7, 8, 9], [4], [10, 11, 12, 13, 14, 15, 16, 17, 18, 3, 2, 0], [30, 31, 32]]


def with_options(method: str, *options: str) -> str:
    head, _, tail = method.partition(":")
    return f"{head}:{','.join(filter(None, [tail, *options]))}"


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_bidirectional_models(make: Make, references: dict[str, Reference], layout: str, method: str, cache: str) -> None:
    llm = make(layout, with_options(method, "block=8", f"cache={cache}"))
    outputs = llm.generate(PROMPTS[1:], max_tokens=14, ignore_eos=True)  # the last block is shorter
    for prompt, output in zip(PROMPTS[1:], outputs, strict=True):
        tokens, forwards = decode(references[layout], prompt, 14, 8, RULES[method], cache)
        assert output.token_ids == tokens
        assert output.stats.forwards == forwards
        assert MASK not in tokens


@pytest.mark.parametrize("store", ["joined", "own"])
@pytest.mark.parametrize("method", RULES)
def test_block_causal_models(make: Make, references: dict[str, Reference], method: str, store: str) -> None:
    llm = make("sdar", with_options(method, f"store={store}"), prefix_cache=False)
    outputs = llm.generate(PROMPTS, max_tokens=14, ignore_eos=True)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert output.token_ids == decode_blocks(references["sdar"], prompt, 14, RULES[method])
        assert len(output.token_ids) == 14
        assert (len(prompt) + len(output.canvas or [])) % BLOCK == 0


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=3), Sampling(temperature=1.0, top_p=0.9, top_k=9, seed=5)])
def test_a_batch_changes_nothing(make: Make, layout: str, sampling: Sampling) -> None:
    """Answers of different length decoded together, few at a time or alone are the same, forwards included."""
    method = "threshold:threshold=0.2,block=4" if layout != "sdar" else "threshold:threshold=0.2"
    alone = make(layout, method)
    expected = [alone.generate([prompt], sampling, max_tokens=10, ignore_eos=True)[0] for prompt in PROMPTS]
    for options in ({}, {"max_sequences": 2, "max_rows": 24}, {"kv_tokens": 48}):
        found = make(layout, method, **options).generate(PROMPTS, sampling, max_tokens=10, ignore_eos=True)
        assert [output.token_ids for output in found] == [output.token_ids for output in expected]
        assert [output.stats.forwards for output in found] == [output.stats.forwards for output in expected]


@pytest.mark.parametrize("method", ["static", "threshold:threshold=0.3", "factor"])
def test_identities_of_options(make: Make, method: str) -> None:
    """One block of the answer's length is the whole answer; no guidance is guidance 0; a cache renewed in every step is no cache."""

    def ids(layout: str, *options: str) -> list[list[int]]:
        found = make(layout, with_options(method, *options)).generate(PROMPTS, max_tokens=16, ignore_eos=True)
        return [output.token_ids for output in found]

    for layout in ("llada", "dream"):
        assert ids(layout, "block=16") == ids(layout, "block=whole")
        assert ids(layout, "block=8") != ids(layout, "block=whole")
        plain = ids(layout, "block=8")
        assert ids(layout, "block=8", "guidance=0") == plain
        assert ids(layout, "block=8", "guidance=2.5") != plain
        for cache in ("prefix", "dual"):
            assert ids(layout, "block=8", f"cache={cache}", "refresh=1") == plain
            assert ids(layout, "block=8", f"cache={cache}") != plain


def test_limits_of_parallel_rules(make: Make) -> None:
    """Threshold 0 decides a block per forward; above 1, and with factor 0, one token per step in the order of static decoding."""

    def run(method: str) -> tuple[list[list[int]], list[int]]:
        found = make("llada", with_options(method, "block=8")).generate(PROMPTS, max_tokens=16, ignore_eos=True)
        return [output.token_ids for output in found], [output.stats.forwards for output in found]

    static = run("static")
    assert static[1] == [16] * len(PROMPTS)
    assert run("threshold:threshold=1.5") == static
    assert run("factor:factor=0") == static
    for cache in ("none", "prefix", "dual"):  # released code runs a useless forward when the first of a block has decided it all
        assert run(f"threshold:threshold=0,cache={cache}")[1] == [2] * len(PROMPTS)
    assert run("static:per_step=8")[1] == [2] * len(PROMPTS)
    assert run("static:per_step=8")[0] == run("threshold:threshold=0")[0]
    assert run("static:steps=4") == run("static:per_step=4")


@pytest.mark.parametrize(("cache", "rows"), [("none", 816), ("prefix", 438), ("dual", 270)])
def test_rows_of_the_calibration_table(make: Make, cache: str, rows: int) -> None:
    """Prompt of 10, answer of 24, blocks of 8: tokens fed in closed form."""
    (output,) = make("llada", f"static:block=8,cache={cache}").generate([list(range(3, 13))], max_tokens=24, ignore_eos=True)
    assert (output.stats.rows, output.stats.forwards) == (rows, 24)
    assert sum(output.stats.runs) == 24


@pytest.mark.parametrize(("per_step", "rows", "forwards"), [(2, 408, 12), (4, 204, 6), (8, 102, 3)])
def test_rows_of_fewer_steps(make: Make, per_step: int, rows: int, forwards: int) -> None:
    (output,) = make("llada", f"static:block=8,per_step={per_step}").generate([list(range(3, 13))], max_tokens=24, ignore_eos=True)
    assert (output.stats.rows, output.stats.forwards) == (rows, forwards)


def test_forwards_of_block_causal_models(make: Make) -> None:
    """A forward of its own to store each block but the last; joined with the next step, none."""
    prompt = list(range(3, 11))
    runs = {}
    for store in ("own", "joined"):
        (output,) = make("sdar", f"static:store={store}", prefix_cache=False).generate([prompt], max_tokens=16, ignore_eos=True)
        runs[store] = (output.stats.prefill_forwards, output.stats.forwards, output.stats.rows)
    # 4 blocks of 4 steps; the prompt's 8 rows are read first, three blocks of 4 rows are read once more
    assert runs["own"] == (1, 4 * 4 + 3, 8 + 16 * 4 + 3 * 4)
    assert runs["joined"] == (0, 4 * 4, 8 + 16 * 4 + 3 * 4)


def test_long_prompts_are_read_in_chunks(make: Make, references: dict[str, Reference]) -> None:
    prompt = [3 + at % 40 for at in range(61)]
    (output,) = make("sdar", "static", max_rows=16, prefix_cache=False).generate([prompt], max_tokens=6, ignore_eos=True)
    assert output.stats.prefill_forwards == 3
    assert output.token_ids == decode_blocks(references["sdar"], prompt, 6, best(1))


def test_whole_blocks_of_a_prompt_are_shared(make: Make) -> None:
    """Only whole blocks: keys of a half block depend on what follows in it."""
    llm = make("sdar", "static")
    first = llm.generate([list(range(3, 13))], max_tokens=4, ignore_eos=True)[0]
    for prompt, shared in (([*range(3, 13), 20, 21], 8), ([*range(3, 9), 30, 31, 32], 4), ([40, 41], 0)):
        found = llm.generate([prompt], max_tokens=8, ignore_eos=True)[0]
        fresh = make("sdar", "static", prefix_cache=False).generate([prompt], max_tokens=8, ignore_eos=True)[0]
        assert found.stats.cached_prompt_tokens == shared
        assert found.token_ids == fresh.token_ids
    assert first.stats.cached_prompt_tokens == 0


def test_without_the_shift_agreement_is_chance(make: Make, references: dict[str, Reference]) -> None:
    """The negative control of Dream's layout: read like LLaDA's, its predictions are for other positions.

    Chance is how often answers to different prompts agree, which is more than one in a vocabulary: both repeat a few tokens.
    """
    prompts = [[3 + (7 * row + 5 * at) % 40 for at in range(4 + row)] for row in range(12)]
    right = [make("dream", "static:block=8").generate([prompt], max_tokens=16, ignore_eos=True)[0].token_ids for prompt in prompts]
    assert right == [decode(references["dream"], prompt, 16, 8, best(1))[0] for prompt in prompts]
    wrong = [_unshifted(references["dream"], prompt, 16) for prompt in prompts]

    def agree(index: int, other: int) -> float:
        return sum(a == b for a, b in zip(right[index], wrong[other], strict=True)) / 16

    own = sum(agree(index, index) for index in range(12)) / 12
    chance = sum(agree(index, other) for index in range(12) for other in range(12) if index != other) / 132
    assert chance < 0.2
    assert own < chance + 0.2  # an untrained model says similar things at neighbouring positions


def _unshifted(reference: Reference, prompt: list[int], length: int) -> list[int]:
    plain = Reference.__new__(Reference)
    plain.__dict__.update(reference.__dict__)
    plain.layout = "dream without shift"
    return decode(plain, prompt, length, 8, best(1))[0]


def test_end_of_text_ends_an_answer(make: Make) -> None:
    """Output is cut there; with early exit the rest of the canvas is filled instead of decoded, and the output is the same."""
    stop = make("llada", "static:block=4").generate(PROMPTS, max_tokens=24, ignore_eos=True)
    ends = [output.token_ids[5] for output in stop]  # an id that certainly comes up
    for prompt, whole, end in zip(PROMPTS, stop, ends, strict=True):
        first = whole.token_ids.index(end)
        early, late = (
            make("llada", f"static:block=4,early_exit={flag}").generate([prompt], max_tokens=24, ignore_eos=True, stop_ids=[end])[0]
            for flag in ("true", "false")
        )
        assert early.token_ids == late.token_ids == whole.token_ids[: first + 1]
        assert early.finish_reason is late.finish_reason is FinishReason.STOP
        assert late.stats.forwards == 24
        assert late.canvas == whole.token_ids
        assert early.stats.forwards == 4 * (first // 4 + 1)
        assert early.canvas is not None
        assert early.canvas[4 * (first // 4 + 1) :] == [EOS] * (24 - early.stats.forwards)
        assert sum(early.stats.runs) == len(early.token_ids)


def test_banned_and_unsure_ends(make: Make) -> None:
    free = make("llada", "static:block=8").generate(PROMPTS, max_tokens=16, ignore_eos=True)
    assert all(MASK not in output.token_ids for output in free)
    compat = make("llada", "static:block=8,compat=true").generate(PROMPTS, max_tokens=16, ignore_eos=True)
    assert all(len(output.token_ids) == 16 for output in compat)
    biased = Sampling(logit_bias={EOS: 50.0})
    always = make("llada", "static:block=8").generate(PROMPTS, biased, max_tokens=16, ignore_eos=True)
    assert all(set(output.token_ids) == {EOS} for output in always)
    never = make("llada", "static:block=8,ban_eos=true").generate(PROMPTS, biased, max_tokens=16, ignore_eos=True)
    assert all(EOS not in output.token_ids for output in never)


def test_of_several_ends_the_first_alone_is_banned(make: Make, loaded: dict[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaDA's chat models fill answers up with one end and finish turns with another, which must remain possible; both count as unsure."""
    config = loaded["llada"].runner.decoder.config
    monkeypatch.setattr(loaded["llada"].runner.decoder, "config", dataclasses.replace(config, eos=(EOS, 9)))
    reading = make("llada", "static:ban_eos=true").engine.denoiser.reading
    assert EOS in reading.banned
    assert 9 not in reading.banned
    assert make("llada", "static:unsure_eos=true").engine.denoiser.reading.unsure == (EOS, 9)
    biased = Sampling(logit_bias={EOS: 50.0, 9: 40.0})
    for output in make("llada", "static:block=8,ban_eos=true").generate(PROMPTS, biased, max_tokens=8):
        assert output.token_ids == [9]


def test_unsure_ends_come_last_at_any_temperature(make: Make) -> None:
    """Released code looks at the likeliest token, so that drawn ends are decided early; here it is the drawn one that counts."""
    sampling = Sampling(temperature=1.0, logit_bias={EOS: 2.5}, seed=4)
    late = early = 0
    for options in ("", ",unsure_eos=true"):
        llm = make("llada", f"static:block=whole{options}")
        for prompt in PROMPTS:
            order: list[int] = []
            for chunk in llm.stream(prompt, sampling, max_tokens=12, ignore_eos=True):
                order += [token for _, token in chunk.filled]
            first = order.index(EOS) if EOS in order else len(order)
            late, early = (late + first, early) if options else (late, early + first)
    assert late > early


def test_tokens_beyond_the_tokenizer_are_never_predicted(make: Make) -> None:
    llm = make("llada", "static:block=8")
    assert llm.engine.denoiser.reading.banned == (MASK,)
    assert max(token for output in llm.generate(PROMPTS, max_tokens=16) for token in output.token_ids) < VOCABULARY

"""dKV-Cache: rows fed in closed form, the one-step delay, what is kept bit for bit, and settings in which nothing is cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_models import MASK, Make, Reference, write
from torch import Tensor
from witnesses import Listening, watch

from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.run import run_audit
from paceline.core.errors import UsageError
from paceline.denoising.canvas import Canvas
from paceline.denoising.dkv import Delayed
from paceline.engine.llm import LLM

PROMPTS = [list(range(3, 13)), [4, 9], [30, 31, 32, 5, 6]]
DKV = ("dkv-decode", "dkv-prefill", "dkv-pd")


def ids(llm: LLM, length: int = 24) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(PROMPTS, max_tokens=length, ignore_eos=True)]


def closed_form(prompt: int, length: int, block: int, refresh: int) -> int:
    total, rows = prompt + length, 0
    for number in range(length // block):
        for step in range(block):
            whole = step < 2 or step % refresh == 0
            rows += total if whole else total - prompt - number * block - (step - 1)
    return rows


@pytest.mark.parametrize(("refresh", "published"), [(1, 816), (2, 618), (4, 492), (8, 429), (100, 429)])
def test_rows_of_decode(make: Make, refresh: int, published: int) -> None:
    (output,) = make("llada", f"static:block=8,cache=dkv-decode,refresh={refresh}").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert (output.stats.rows, output.stats.forwards) == (published, 24)
    assert closed_form(10, 24, 8, refresh) == published


@pytest.mark.parametrize(("prompt", "length", "block", "refresh"), [(2, 16, 16, 4), (7, 12, 4, 3), (5, 18, 6, 8)])
def test_rows_of_decode_elsewhere(make: Make, prompt: int, length: int, block: int, refresh: int) -> None:
    llm = make("llada", f"static:block={block},cache=dkv-decode,refresh={refresh}")
    (output,) = llm.generate([list(range(3, 3 + prompt))], max_tokens=length, ignore_eos=True)
    assert output.stats.rows == closed_form(prompt, length, block, refresh)


@pytest.mark.parametrize(("refresh", "published"), [(4, 420), (8, 354)])
def test_rows_of_the_control_without_delay(make: Make, refresh: int, published: int) -> None:
    llm = make("llada", f"static:block=8,cache=dkv-decode,refresh={refresh}")
    watch(llm, delay=False)
    (output,) = llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert output.stats.rows == published


def test_published_rows_of_long_answers() -> None:
    assert closed_form(100, 256, 32, 8) == 41_984
    assert closed_form(100, 256, 32, 4) == 49_248
    assert closed_form(100, 256, 32, 1) == 91_136


@pytest.mark.parametrize("method", ["static", "static:per_step=3", "threshold:threshold=0.3", "static:algorithm=random"])
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_a_cache_renewed_in_every_step_is_none(make: Make, layout: str, method: str) -> None:
    head, _, tail = method.partition(":")

    def tokens(*options: str) -> list[list[int]]:
        return ids(make(layout, f"{head}:{','.join(filter(None, [tail, 'block=8', *options]))}"))

    plain = tokens()
    assert tokens("cache=dkv-decode", "refresh=1") == plain
    assert tokens("cache=dkv-pd", "refresh=1") == tokens("cache=dkv-prefill")
    if layout == "llada" and "random" in method:
        assert tokens("cache=dkv-greedy", "refresh=1") == plain
        assert tokens("cache=dkv-greedy", "refresh=4", "dkv_window=0") != plain
    elif method == "static":
        assert tokens("cache=dkv-decode", "refresh=100") != plain  # and larger ones are not


@pytest.mark.parametrize(("refresh", "guidance"), [(2, 0), (4, 0), (4, 1.5)])
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_a_decided_token_is_fed_once_more(make: Make, layout: str, refresh: int, guidance: float) -> None:
    """In the step behind its decision, and then not before the next refresh; the control without delay does not feed it."""
    for delay in (True, False):
        llm = make(layout, f"static:block=8,cache=dkv-decode,refresh={refresh},guidance={guidance}")
        watched = watch(llm, delay=delay)
        llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
        views = 2 if guidance else 1
        looks = watched.seen[::views]
        assert [fed for *_, fed in looks] == [fed for *_, fed in watched.seen[views - 1 :: views]]
        again = skipped = 0
        for (_, before, _), (_, after, _), (step, _, fed), (later, _, afterwards) in zip(
            looks, looks[1:], looks[1:], looks[2:], strict=False
        ):
            (token,) = np.flatnonzero(before & ~after)
            if step % refresh and step > 1:
                again += token in fed
                skipped += token not in fed
            if later % refresh and later > 1 and layout == "llada":
                assert token not in afterwards
        assert skipped == 0 if delay else skipped > 0
        assert again > 0 if delay else again == 0 or layout == "dream"  # there a position waits for its successor as well


@pytest.mark.parametrize("cache", ["dkv-decode", "dkv-greedy"])
def test_keys_and_values_are_those_of_the_last_forward_that_fed_them(make: Make, cache: str) -> None:
    """Bit for bit: what is not fed does not change, what is fed does."""
    llm = make("llada", f"static:block=8,algorithm=random,cache={cache},refresh=4")
    watched = watch(llm)
    llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    kept = changed = 0
    for (_, _, fed), before, after in zip(watched.seen, watched.keys, watched.keys[1:], strict=False):
        others = np.setdiff1d(np.arange(len(before)), fed)
        assert torch.equal(before[others], after[others])
        kept += len(others)
        changed += int((before[fed] != after[fed]).any(-1).any(-1).sum())
    assert kept > 0
    assert changed > 0


@pytest.mark.parametrize("delay", [True, False])
def test_what_is_stored_is_of_the_token_not_of_the_mask(make: Make, references: dict[str, Reference], delay: bool) -> None:
    """Keys and values of all layers against an independent forward over the rows that the page says; without delay they are others."""
    llm = make("llada", "static:block=8,cache=dkv-decode,refresh=100")
    watched = watch(llm, delay=delay)
    (output,) = llm.generate(PROMPTS[:1], max_tokens=8, ignore_eos=True)
    reference, store, worst = references["llada"], None, 0.0
    final = [*PROMPTS[0], *output.token_ids]
    for number, layers in enumerate(watched.layers[1:]):
        state = watched.seen[number][1]
        earlier = watched.seen[number - 1][1] if number else state
        fed = list(range(len(final))) if number < 2 else np.flatnonzero(earlier).tolist()  # what was decided before the last step is not
        canvas = [MASK if state[at] else final[at] for at in range(len(final))]
        _, store = reference.partial(canvas, fed, store)
        if delay:
            assert watched.seen[number][2] == fed
        for own, expected in zip(layers, store, strict=True):
            worst = max(worst, *(float((mine - other).abs().max()) for mine, other in zip(own, expected, strict=True)))
    assert worst < 1e-9 if delay else worst > 1e-2


def test_the_order_of_keys_does_not_matter() -> None:
    """Softmax has no order, so that a buffer by position may stand for one that is reordered."""
    from paceline.attention.attend import attend_one
    from paceline.attention.plan import Reach

    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(rows, 2, 8, generator=generator) for rows in (5, 40, 40))
    order = torch.randperm(40, generator=generator)
    outs = [
        attend_one(query, keys, values, Reach(slice(0, 5), where, 40, causal=False, mask=None), None, 8**-0.5, None)
        for where in (slice(0, 40), order)
    ]
    assert (outs[0] - outs[1]).abs().max() < 1e-6
    with_other_values = attend_one(query, keys, values[order], Reach(slice(0, 5), slice(0, 40), 40, False, None), None, 8**-0.5, None)
    assert (outs[0] - with_other_values).abs().max() > 1e-3


def test_usual_numbers(make: Make) -> None:
    """8 steps between refreshes, 4 in Dream's layout; 2 for Greedy, with a window of 4 masked positions around the last decision."""
    for layout, cache, refresh in (("llada", "decode", 8), ("llada", "pd", 8), ("dream", "decode", 4), ("dream", "pd", 4)):
        policy = make(layout, f"static:cache=dkv-{cache}").engine.denoiser.policy
        assert (policy.refresh, policy.hold, policy.delay) == (refresh, cache == "pd", True)
        assert policy.shifted == (None if layout == "llada" else "both")
    policy = make("llada", "static:algorithm=random,cache=dkv-greedy").engine.denoiser.policy
    assert (policy.refresh, policy.window, policy.center, policy.walk) == (2, 4, "prev", "masked")


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_renewed_in_every_step_logits_are_those_without_a_cache(make: Make, layout: str) -> None:
    """Bit for bit in float64; the control is one step without."""
    found = {}
    for name, options in (("none", ""), ("each", ",cache=dkv-decode,refresh=1"), ("second", ",cache=dkv-decode,refresh=2")):
        llm = make(layout, f"static:block=8{options}")
        seen: list[Tensor] = []
        llm.engine.denoiser = replace(llm.engine.denoiser, hooks=Listening(seen))
        llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
        found[name] = seen
    assert all(torch.equal(one, other) for one, other in zip(found["none"], found["each"], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(found["none"], found["second"], strict=True))


def test_prefill_computes_the_prompt_once(make: Make) -> None:
    (output,) = make("llada", "static:block=8,cache=dkv-prefill").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert output.stats.rows == 34 + 23 * 24
    (output,) = make("dream", "static:block=8,cache=dkv-prefill").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert output.stats.rows == 34 + 23 * 25  # the last token of the prompt predicts the first of the answer
    (output,) = make("llada", "static:block=8,cache=dkv-pd,refresh=4").generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert output.stats.rows == closed_form(0, 24, 8, 4) + 10  # that of Decode without a prompt, and the prompt once


def test_prompts_too_short_to_hold(make: Make) -> None:
    """An empty prompt in LLaDA's layout, one token in Dream's: everything is computed in every step."""
    for shifted, prompt in ((None, []), ("both", [5])):
        canvas = Canvas.start(prompt, 8, block=4, mask=MASK)
        canvas.forwards = 3
        assert list(Delayed(1, hold=True, shifted=shifted).look(canvas, None, 0).positions) == list(range(canvas.length))  # type: ignore[arg-type]
    one = [[7]]
    plain, held = (
        make("dream", f"static:block=8,cache={cache}").generate(one, max_tokens=16, ignore_eos=True)[0] for cache in ("none", "dkv-prefill")
    )
    assert plain.token_ids == held.token_ids


@pytest.mark.parametrize("storable", ["both", "un", "right"])
@pytest.mark.parametrize("method", ["static:block=whole", "static:block=8", "static:per_step=3,block=8", "threshold:threshold=0.2,block=8"])
def test_models_with_shifted_predictions(make: Make, storable: str, method: str) -> None:
    """`both` never keeps what was computed for a mask, `un` does; `right` leaves open positions without a prediction, never undecided."""
    llm = make("dream", f"{method},cache=dkv-decode,dkv_storable={storable}")
    watched = watch(llm)
    (output,) = llm.generate(PROMPTS[:1], max_tokens=24, ignore_eos=True)
    assert MASK not in output.token_ids
    assert len(output.token_ids) == 24
    masked = unpredicted = 0
    for _, is_open, fed in watched.seen:
        left_out = np.setdiff1d(np.arange(34), fed)
        masked += int(is_open[left_out].sum())
        unpredicted += int(is_open[left_out[left_out < 33] + 1].sum())
        assert 9 in fed or not is_open[10]
    assert (masked > 0) is (storable == "un")
    assert (unpredicted > 0) is (storable == "right")


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("cache", DKV)
def test_a_batch_changes_nothing(make: Make, layout: str, cache: str) -> None:
    method = f"threshold:threshold=0.2,block=8,cache={cache}"
    alone = [make(layout, method).generate([prompt], max_tokens=20, ignore_eos=True)[0] for prompt in PROMPTS]
    together = make(layout, method, max_rows=48).generate(PROMPTS, max_tokens=20, ignore_eos=True)
    assert [output.token_ids for output in alone] == [output.token_ids for output in together]
    assert [output.stats.rows for output in alone] == [output.stats.rows for output in together]


@pytest.mark.parametrize("cache", DKV)
@pytest.mark.parametrize(
    "method", ["threshold:threshold=0.2", "factor", "localleap:threshold=0.4,relaxed=0.2", "static:per_step=2,eotp=committed"]
)
def test_any_rule_goes_with_any_delayed_cache(make: Make, method: str, cache: str) -> None:
    """Everything is decided, in fewer rows than without a cache per forward."""
    joint = "," if ":" in method else ":"
    for layout in ("llada", "dream"):
        outputs = make(layout, f"{method}{joint}block=8,cache={cache}").generate(PROMPTS, max_tokens=20)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            assert MASK not in output.token_ids
            assert 0 < len(output.token_ids) <= 20
            assert output.stats.rows <= output.stats.forwards * (len(prompt) + 20)


@pytest.mark.parametrize("method", ["static:cache=dkv-decode,block=8", "static:cache=dkv-greedy,algorithm=random,block=8"])
def test_the_audit_measures_it(tmp_path: Path, method: str) -> None:
    """Nothing is promised but that an answer does not depend on those beside it."""
    certificate = run_audit(write(tmp_path, "llada"), method, dtype="float64", prompts=PROMPTS, max_tokens=16, controls=False)
    certificate.require()
    assert certificate.guarantee["greedy"] == "bounded"
    assert [check.outcome for check in certificate.checks] == [Outcome.MEASURED, Outcome.PASSED]


def test_memory_is_given_back(make: Make) -> None:
    llm = make("llada", "static:block=8,cache=dkv-decode")
    llm.generate(PROMPTS, max_tokens=16)
    memory = llm.runner.memory
    assert memory.free_slots + memory.evictable_slots == memory.total_slots


@pytest.mark.parametrize(
    ("layout", "method", "named"),
    [
        ("llada", "static:cache=dkv-greedy", "algorithm=random"),
        ("llada", "threshold:cache=dkv-greedy", "algorithm=random"),
        ("dream", "static:cache=dkv-greedy,algorithm=random", "dkv-decode"),
        ("llada", "static:cache=dkv-prefill,refresh=2", "refresh"),
        ("llada", "static:cache=dkv-greedy,algorithm=random,dkv_window=-1", "dkv_window"),
        ("sdar", "static:cache=dkv-decode", "leave cache out"),
    ],
)
def test_what_does_not_fit_is_said(make: Make, layout: str, method: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make(layout, method)

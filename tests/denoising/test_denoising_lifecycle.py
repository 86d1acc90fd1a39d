"""Requests to a diffusion model live like any others: streams, samples, limits, cancellation, memory, and errors that say what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusion_models import MASK, Make
from torch import Tensor

from paceline.core.errors import CapacityError, UsageError
from paceline.core.request import FinishReason
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas
from paceline.engine.denoise import DenoisingEngine
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.prompts import Tokenizer

PROMPT = [5, 6, 7, 8, 9]
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Letters:
    """Token i is the i-th letter; there are fewer letters than rows of the model's table."""

    def __len__(self) -> int:
        return 40

    def encode(self, text: str) -> list[int]:
        return [ALPHABET.index(letter) for letter in text]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(ALPHABET[token] for token in ids)


def with_letters(llm: LLM, method: str) -> LLM:
    """The same weights with a tokenizer."""
    lettered = load(llm, "static", device="cpu", kv_tokens=8)
    lettered.tokenizer = Tokenizer(Letters())
    return load(lettered, method, device="cpu", kv_tokens=1024)


def in_use(llm: LLM) -> int:
    memory = llm.runner.memory
    return int(memory.total_slots - memory.free_slots - memory.evictable_slots)


@pytest.mark.parametrize(
    ("layout", "method"), [("llada", "threshold:block=4,threshold=0.2"), ("sdar", "static"), ("dream", "factor:block=8")]
)
def test_a_stream_shows_positions_filling_in(make: Make, layout: str, method: str) -> None:
    """Every position is reported once, with the token it keeps; tokens come out block by block."""
    llm = make(layout, method)
    (whole,) = llm.generate([PROMPT], max_tokens=16, ignore_eos=True)
    board: dict[int, int] = {}
    told: list[int] = []
    last = None
    for chunk in llm.stream(PROMPT, max_tokens=16, ignore_eos=True):
        assert not board.keys() & {index for index, _ in chunk.filled}
        board.update(chunk.filled)
        told += chunk.token_ids
        assert all(board[index] == token for index, token in enumerate(told))  # nothing is output before it is decided
        last = chunk.output or last
    assert last is not None
    assert told == last.token_ids == whole.token_ids
    assert [board[index] for index in range(len(board))] == last.canvas == whole.canvas
    assert last.finish_reason is FinishReason.LENGTH
    assert last.stats.ttft <= last.stats.times[-1]


def test_text_and_stop_strings(make: Make) -> None:
    llm = with_letters(make("llada"), "static:block=4")
    assert llm.engine.denoiser.reading.banned == tuple(range(40, 48))  # ids without a letter, the mask among them
    whole = llm.generate("fghij", max_tokens=16, ignore_eos=True)[0]
    assert whole.text == Letters().decode(whole.token_ids)
    stop = whole.text[5:7]
    cut = llm.generate("fghij", max_tokens=16, ignore_eos=True, stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason is FinishReason.STOP
    assert "".join(chunk.text for chunk in llm.stream("fghij", max_tokens=16, ignore_eos=True, stop=[stop])) == cut.text


def test_samples_of_one_prompt(make: Make) -> None:
    llm = make("llada", "static:block=4")
    sampling = Sampling(temperature=1.2, seed=4, n=3)
    (found,) = llm.generate([PROMPT], sampling, max_tokens=8, ignore_eos=True)
    assert len({tuple(sample.token_ids) for sample in found.samples}) == 3
    (again,) = llm.generate([PROMPT], Sampling(temperature=1.2, seed=4), max_tokens=8, ignore_eos=True)
    assert again.token_ids == found.samples[0].token_ids


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_cancelling_frees_memory(make: Make, layout: str) -> None:
    llm = make(layout, "static")
    stream = llm.stream(PROMPT, max_tokens=16, ignore_eos=True)
    next(stream)
    assert in_use(llm) > 0
    stream.close()  # type: ignore[attr-defined]
    assert in_use(llm) == 0
    assert llm.engine.idle
    llm.generate([PROMPT, PROMPT], max_tokens=8)
    assert in_use(llm) == 0


def test_priority_and_memory_decide_who_runs(make: Make) -> None:
    """Two canvases do not fit at once: the important one goes first, and nobody is ever thrown out."""
    llm = make("llada", "static:block=4", kv_tokens=20)
    engine = llm.engine
    low, high = (engine.submit(llm.request(PROMPT, max_tokens=8, ignore_eos=True, priority=rank))[0] for rank in (0, 1))
    order = []
    while not engine.idle:
        order += [emission.sequence for emission in engine.step()]
    assert order == [high] * 8 + [low] * 8
    assert low.output == high.output
    assert low.stats.preemptions == 0


def test_every_answer_gets_its_turn(make: Make) -> None:
    """Forwards too small for all serve them in rotation."""
    llm = make("llada", "static:block=4", max_rows=26)
    engine = llm.engine
    sequences = [engine.submit(llm.request(PROMPT, max_tokens=8, ignore_eos=True))[0] for _ in range(3)]
    served = [[emission.sequence for emission in engine.step()] for _ in range(6)]
    assert all(len(step) == 2 for step in served)
    assert [sum(sequence in step for step in served) for sequence in sequences] == [4, 4, 4]


def test_the_context_is_the_limit(make: Make) -> None:
    long = [3 + at % 30 for at in range(250)]
    for layout, most in (("llada", 6), ("dream", 6)):
        (output,) = make(layout, "static").generate([long], max_tokens=50, ignore_eos=True)
        assert len(output.token_ids) == most
        assert output.finish_reason is FinishReason.LENGTH
    assert len(make("sdar", "static").generate([long], max_tokens=6, ignore_eos=True)[0].token_ids) == 6
    with pytest.raises(UsageError, match="context"):
        make("llada", "static").generate([[3] * 256], max_tokens=1)


def test_what_cannot_fit_is_refused(make: Make) -> None:
    with pytest.raises(CapacityError, match="kv_tokens"):
        make("llada", "static", kv_tokens=16).generate([PROMPT], max_tokens=12)
    with pytest.raises(CapacityError, match="kv_tokens"):
        make("llada", "static:guidance=1", kv_tokens=30).generate([PROMPT], max_tokens=12)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("prompt-lookup", "autoregressive"),
        ("lookahead", "static, threshold, factor"),
        ("static+threshold", "do not combine"),
        ("static:block=0", "block"),
        ("static:refresh=2", "refresh"),
        ("static:guidance=-1", "guidance"),
        ("static:per_step=0", "per_step"),
        ("static:per_step=2,steps=4", "per_step"),
        ("static:schedule=dream", "steps"),
        ("static:algorithm=origin", "algorithm"),
        ("static:algorithm=random,alg_temp=0.5", "alg_temp"),
        ("static:cache=paged", "cache"),
        ("threshold:threshold=-0.1", "threshold"),
        ("threshold:by=entropy,least=2", "least"),
        ("factor:factor=-1", "factor"),
    ],
)
def test_methods_that_do_not_fit(make: Make, method: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make("llada", method)


def test_options_that_do_not_fit(make: Make, loaded: dict[str, LLM]) -> None:
    for options in ({"exact": True}, {"draft": loaded["llada"]}, {"batching": "eqspec"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            make("llada", "static", **options)
    for method in ("static:cache=dual", "threshold:block=8"):
        with pytest.raises(UsageError, match="leave"):
            make("sdar", method)
    assert isinstance(make("sdar", "static:block=4").engine, DenoisingEngine)
    with pytest.raises(UsageError, match="steps=5"):
        make("llada", "static:block=4,steps=5").generate([PROMPT], max_tokens=8)
    for sampling in (Sampling(repetition_penalty=1.1), Sampling(no_repeat_ngram=2), Sampling(logprobs=1)):
        with pytest.raises(UsageError, match=r"penalties|logprobs"):
            make("llada", "static").generate([PROMPT], sampling, max_tokens=8)


def test_an_autoregressive_model_is_not_denoised() -> None:
    from paceline.bench.audit.toy import toy_decoder

    with pytest.raises(UsageError, match="'threshold' decodes masked diffusion models"):
        load(toy_decoder(), "threshold", device="cpu", kv_tokens=8, pack=False)


def test_methods_without_a_name_mean_static(make: Make) -> None:
    for method in ("auto", "none"):
        llm = make("llada", method)
        assert llm.method == "static"
        plain = make("llada", "static").generate([PROMPT], max_tokens=8)
        assert llm.generate([PROMPT], max_tokens=8)[0].token_ids == plain[0].token_ids


def test_dream_takes_as_many_forwards_as_steps(make: Make) -> None:
    """Rounding leaves the first step empty; every algorithm takes all steps, and one whole canvas or blocks of it."""
    for options in ("algorithm=entropy", "algorithm=topk_margin,alg_temp=0.1", "algorithm=maskgit_plus", "algorithm=origin"):
        llm = make("dream", f"static:block=whole,schedule=dream,steps=16,{options}")
        (output,) = llm.generate([PROMPT], Sampling(temperature=0.4, top_p=0.9), max_tokens=16, ignore_eos=True)
        assert len(output.token_ids) == 16
        if "origin" not in options:
            assert output.stats.forwards == 16
            assert output.stats.runs == (*[1] * 14, 2)
        assert output.stats.forwards <= 16
    (output,) = make("dream", "static:block=8,cache=dual,schedule=dream,steps=8").generate([PROMPT], max_tokens=16, ignore_eos=True)
    assert output.stats.forwards == 8
    (output,) = make("dream", "static:block=8,cache=dual,schedule=dream,steps=16").generate([PROMPT], max_tokens=16, ignore_eos=True)
    assert MASK not in output.token_ids  # the first step decides nothing but what later ones could not
    assert output.stats.runs[0] == 1


def test_guidance_with_a_shared_prompt(make: Make) -> None:
    """The prompt's blocks are in memory, those of the masked prompt are not: the one waits for the other."""
    prompt = [3 + at % 30 for at in range(21)]
    for options in ("store=own", "store=joined"):
        llm = make("sdar", f"static:guidance=1.5,{options}", max_rows=8)
        first, again = (llm.generate([prompt], max_tokens=8, ignore_eos=True)[0] for _ in range(2))
        assert (first.stats.cached_prompt_tokens, again.stats.cached_prompt_tokens) == (0, 20)
        assert first.token_ids == again.token_ids


class Recorder:
    """Writes down every step, and forbids one token from the fourth step on."""

    def __init__(self, forbidden: int) -> None:
        self.forbidden = forbidden
        self.seen: list[tuple[int | None, int]] = []

    def tokens(self, step: int | None, canvas: Canvas) -> None:
        self.seen.append((step, int(canvas.open.sum())))

    def logits(self, step: int, canvas: Canvas, logits: Tensor) -> Tensor:
        assert len(logits) == len(canvas.open_in_block())
        if step >= 3:
            logits[:, self.forbidden] = -torch.inf
        return logits


def test_hooks_see_and_change_every_step(make: Make) -> None:
    llm = make("dream", "static:block=4")
    (plain,) = llm.generate([PROMPT], max_tokens=8, ignore_eos=True)
    recorder = Recorder(forbidden=plain.token_ids[-1])
    llm.engine.denoiser = replace(llm.engine.denoiser, hooks=recorder)
    (changed,) = llm.generate([PROMPT], max_tokens=8, ignore_eos=True)
    assert recorder.seen == [(None, 8), *((step, 7 - step) for step in range(8))]
    assert recorder.forbidden not in changed.token_ids[4:]
    assert changed.token_ids != plain.token_ids

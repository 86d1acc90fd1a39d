"""Run the demo: complete every prompt plainly and accelerated, several times in turns, and keep the median of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from paceline.core.sampling import Sampling
from paceline.demo.result import Completion, Demo, Run, Side, Verdict
from paceline.demo.threads import settle_threads
from paceline.demo.twin import first_difference

if TYPE_CHECKING:
    from paceline.engine.llm import LLM
    from paceline.zoo.prompts import HeldOutPrompt

PROBE_TOKENS = 6  # per thread setting tried


def settle(plain: LLM, prompt: HeldOutPrompt, sampling: Sampling) -> int:
    """Choose the number of threads by a few tokens of plain decoding."""
    return settle_threads(lambda: _complete(plain, prompt, PROBE_TOKENS, sampling).stats.decode_seconds)


def run_demo(
    llm: LLM,
    twin: LLM,
    prompts: Sequence[HeldOutPrompt],
    tokens: int,
    repeats: int,
    draft: str | None,
    sampling: Sampling,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Demo:
    """Complete every prompt with `llm` and with `twin`, taking turns so that a drifting machine slows both.

    Args:
        llm: loaded without prefix cache, otherwise later repeats would find the prompt already read; and coupled, so that samples too
            must be those of plain decoding.
        twin: the same weights, decoded plainly.
        tokens: most tokens per completion.
        repeats: of every completion; the median one is kept.
        draft: name of the draft model, for the record.
        sampling: how tokens are chosen.
        on_progress: told what is being done.
    """
    on_progress("warming up")
    for engine in (twin, llm):
        _complete(engine, prompts[0], min(8, tokens), sampling)
    completions = []
    for number, prompt in enumerate(prompts, start=1):
        plain: list[Side] = []
        fast: list[Side] = []
        for _ in range(repeats):
            settle(twin, prompt, sampling)
            on_progress(f"{number} of {len(prompts)}: {prompt.name}")
            plain.append(_complete(twin, prompt, tokens, sampling))
            fast.append(_complete(llm, prompt, tokens, sampling))
        chosen = _median(fast)
        pieces = token_texts(llm, chosen.ids)
        ids = list(llm.request(prompt.prefix).ids)
        completions.append(Completion(prompt, pieces, _median(plain), chosen, judge(llm, ids, plain[0].ids, chosen.ids, sampling)))
    dtype = str(llm.runner.decoder.dtype).removeprefix("torch.")
    return Demo(shown(llm.name), llm.method, None if draft is None else shown(draft), dtype, repeats, sampling, tuple(completions))


def shown(model: str) -> str:
    """A model's name for tables and files: of a local folder only the last part, so that no record tells where somebody keeps it."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def judge(llm: LLM, prompt: list[int], plain: list[int], fast: list[int], sampling: Sampling) -> Verdict:
    """Compare two outputs; a difference is a tie or a violation by the audit's rule on the plain path."""
    from paceline.bench.audit.margins import PlainPath

    at = first_difference(plain, fast)
    if at is None:
        return Verdict("identical")
    if at >= min(len(plain), len(fast)):  # one of them ended early
        return Verdict("violation", at)
    margin = PlainPath(llm.runner.decoder, llm.runner.exact).margin(prompt, plain[:at], sampling, plain[at], fast[at])
    return Verdict("tie" if margin.is_tie else "violation", at, margin.top2)


def token_texts(llm: LLM, ids: Sequence[int]) -> tuple[str, ...]:
    """Text of each token, so that they join to the text of all; a character split over tokens belongs to the one that completes it."""
    if llm.tokenizer is None:
        return tuple(f"{token} " for token in ids)
    pieces, before = [], ""
    for count in range(1, len(ids) + 1):
        text = llm.tokenizer.decode(ids[:count])
        settled = text.rstrip("\ufffd") if count < len(ids) else text
        pieces.append(settled[len(before) :])
        before = before if len(settled) < len(before) else settled
    return tuple(pieces)


def _complete(llm: LLM, prompt: HeldOutPrompt, tokens: int, sampling: Sampling) -> Side:
    start = perf_counter()
    runs, stats = [], None
    for chunk in llm.stream(prompt.prefix, sampling, max_tokens=tokens):
        runs.append(Run(chunk.token_ids, chunk.drafted, perf_counter() - start))
        stats = chunk.output.stats if chunk.output is not None else stats
    if stats is None:
        raise RuntimeError("the stream ended without its last chunk")
    return Side(tuple(runs), stats)


def _median(sides: Sequence[Side]) -> Side:
    """The side with the median decoding time (the faster of the middle two)."""
    middle = median(sorted(side.stats.decode_seconds for side in sides))
    return min(sides, key=lambda side: abs(side.stats.decode_seconds - middle))

"""Ways of decoding a diffusion model of Python side by side: speed, and what the answers are worth, at growing answers and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from paceline.bench.denoising_judges import Judge, edit_distance
from paceline.bench.denoising_questions import Question, marks, questions
from paceline.bench.denoising_rows import interval
from paceline.bench.report import Column, public_name
from paceline.core.errors import UsageError
from paceline.core.request import FinishReason
from paceline.denoising.base import canvases
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.output import Output

SPARE = 64  # slots per answer beyond prompt and canvas
WARM_UP = 4  # tokens decided before time is taken
Tell = Callable[[str, int, int], None]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TextSettings:
    """What is measured.

    Args:
        lengths: most tokens of an answer; shorter ones end by themselves.
        batches: answers decoded together.
        prompts: half of them problems, half code to continue.
        chars: longest piece of code.
        rounds: times that every method has its turn; times are medians.
        seed: of problems and intervals.
        judge: autoregressive model that says how likely continued code is; none if empty.
    """

    lengths: tuple[int, ...] = (64, 128, 256, 512)
    batches: tuple[int, ...] = (1, 8)
    prompts: int = 16
    chars: int = 600
    rounds: int = 1
    seed: int = 0
    judge: str = "pocket-code"

    def __post_init__(self) -> None:
        for name in ("lengths", "batches"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be positive numbers")
        if self.prompts < 2 or self.rounds < 1:
            raise UsageError(f"prompts={self.prompts} must be at least 2 and rounds={self.rounds} at least 1")


def numbers(text: str) -> tuple[int, ...]:
    """`64,128` as numbers.

    Raises:
        UsageError: if it does not read so.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} must be numbers separated by commas, as in 64,128") from None


def open_text(checkpoint: Any) -> LLM:
    """A diffusion model that questions can be put to.

    Raises:
        UsageError: for an autoregressive model, or one without a tokenizer.
    """
    model = load(checkpoint, "auto", kv_tokens=256)
    if model.tokenizer is None or not model.denoises:
        raise UsageError(f"{model.name}: a masked diffusion model with a tokenizer is needed here")
    return model


def fitting(model: LLM, methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """Methods that a model can be decoded with, and those that it refuses; block-causal models have no caches, for example."""
    kept: list[str] = []
    refused: list[str] = []
    for method in methods:
        try:
            load(model, method, device=model.runner.decoder.device, kv_tokens=2)
        except UsageError:
            refused.append(method)
        else:
            kept.append(method)
    return kept, refused


def text_rows(model: LLM, methods: Sequence[str], settings: TextSettings, tell: Tell | None = None) -> Iterator[list[dict[str, Any]]]:
    """Measure methods on held-out problems and code. Answers end where a user's would: at an end of text, or at the length.

    Args:
        model: from `open_text`.
        methods: method strings. The first is what others are compared with.
        settings: what is measured.
        tell: called with what is being measured, turns done and turns in all.

    Yields:
        After each length and batch, a row per method. Per answer: `forwards`, `rows` fed, `identical` and `edit`, the share of answers
        equal to the first method's and the mean distance from them, `solved` problems, code that `parses`, and its `bits` per byte under
        the judge. `tokens_per_second` counts tokens up to the ends of text; `speedup` is against the first method in the same round.
    """
    judge = Judge(load(settings.judge, "none", kv_tokens=256)) if settings.judge else None
    asked = questions(settings.prompts, settings.chars, settings.seed)
    turns = len(settings.lengths) * len(settings.batches) * settings.rounds * len(methods)
    done = 0
    for length in settings.lengths:
        for batch in settings.batches:
            times: dict[str, list[float]] = {method: [] for method in methods}
            outputs: dict[str, list[Output]] = {}
            for _ in range(settings.rounds):
                for method in methods:
                    if tell is not None:
                        tell(f"{length} tokens, batch {batch}: {method}", done, turns)
                    seconds, outputs[method] = _timed(model, method, asked, length, batch)
                    times[method].append(seconds)
                    done += 1
            found = []
            for method in methods:
                row = _quality(asked, outputs[method], outputs[methods[0]], judge, settings.seed)
                ratios = [
                    (first / own) * row["tokens"] / sum(len(output.token_ids) for output in outputs[methods[0]])
                    for first, own in zip(times[methods[0]], times[method], strict=True)
                ]
                found.append({
                    "model": public_name(model.name), "length": length, "batch": batch, "method": method, **row,
                    "seconds": median(times[method]), "tokens_per_second": row["tokens"] / median(times[method]), "speedup": median(ratios),
                })  # fmt: skip
            yield found


def _timed(model: LLM, method: str, asked: Sequence[Question], length: int, batch: int) -> tuple[float, list[Output]]:
    """Seconds for all questions, `batch` at a time, and the answers."""
    assert model.tokenizer is not None
    prompts = [model.tokenizer.encode(question.prompt) for question in asked]
    room = batch * (max(map(len, prompts)) + length + SPARE) * canvases(method)
    device = model.runner.decoder.device
    llm = load(model, method, device=device, kv_tokens=room, max_sequences=batch, max_rows=1 << 20, prefix_cache=False)
    llm.generate(prompts[:1], max_tokens=WARM_UP)
    start = perf_counter()
    outputs = llm.generate(prompts, max_tokens=length)
    return perf_counter() - start, outputs


def _quality(
    asked: Sequence[Question], outputs: Sequence[Output], first: Sequence[Output], judge: Judge | None, seed: int
) -> dict[str, Any]:
    """What does not depend on the clock: means, and 95 % bootstrap intervals over prompts."""
    pairs = [(mine.token_ids, other.token_ids) for mine, other in zip(outputs, first, strict=True)]
    judged = marks(asked, [(output.text, output.finish_reason is FinishReason.STOP) for output in outputs], judge)
    measures: dict[str, Sequence[float]] = {
        "forwards": [output.stats.forwards for output in outputs],
        "rows": [output.stats.rows for output in outputs],
        "identical": [float(mine == other) for mine, other in pairs],
        "edit": [edit_distance(mine, other) for mine, other in pairs],
        "solved": judged.solved,
        "parses": judged.parses,
        "bits": judged.bits,
    }
    row: dict[str, Any] = {"tokens": sum(len(mine) for mine, _ in pairs)}
    for name, values in measures.items():
        array = np.array(values, dtype=float)
        row[name] = float(array.mean()) if len(array) else None
        row[f"{name}_interval"] = interval(array, seed) if len(array) else None
    return row


def _spread(name: str, heading: str) -> Column:
    def text(row: Mapping[str, Any]) -> str:
        if row[name] is None:
            return ""
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.2f} ({low:.2f}-{high:.2f})"

    return Column(heading, text)


TEXT_COLUMNS = [
    Column("tokens", "length"),
    Column("batch", "batch"),
    Column("method", "method", numeric=False),
    Column("forwards", lambda row: f"{row['forwards']:.1f}"),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    Column("tokens/s", lambda row: f"{row['tokens_per_second']:.1f}"),
    Column("speed-up", lambda row: f"{row['speedup']:.2f}x"),
    Column("identical", lambda row: f"{row['identical']:.2f}"),
    Column("edits", lambda row: f"{row['edit']:.3f}"),
    _spread("solved", "solved"),
    _spread("parses", "parses"),
    _spread("bits", "bits per byte"),
    Column("unbeaten in", lambda row: ", ".join(row["unbeaten"]), numeric=False),
]

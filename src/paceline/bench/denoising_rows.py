"""What a way of denoising costs and what it changes: forwards and rows per answer, and agreement with a reference, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.denoising.base import canvases
from paceline.denoising.denoiser import Denoiser
from paceline.engine.llm import LLM
from paceline.engine.load import load

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Run:
    """Answers of one method to all prompts.

    Args:
        method: method string.
        tokens: output ids of each prompt.
        forwards, rows: of each prompt.
        seconds: for all of them, decoded one after the other or together.
        runs: of each prompt, tokens that each forward decided, where it decided any.
    """

    method: str
    tokens: tuple[tuple[int, ...], ...]
    forwards: tuple[int, ...]
    rows: tuple[int, ...]
    seconds: float
    runs: tuple[tuple[int, ...], ...] = ()


def run_method(
    model: LLM,
    method: str,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    batch: int = 1,
    change: Callable[[Denoiser], Denoiser] | None = None,
) -> Run:
    """Decode all prompts greedily, `batch` at a time; ends of text do not end an answer, so that all are of one length.

    Args:
        change: made to the decoder first; for controls that no option asks for.
    """
    room = batch * (max(map(len, prompts)) + max_tokens + 64) * canvases(method)
    llm = load(model, method, device=model.runner.decoder.device, kv_tokens=room, max_sequences=batch, max_rows=1 << 20, prefix_cache=False)
    if change is not None:
        llm.engine.denoiser = change(llm.engine.denoiser)
    llm.generate([list(prompts[0])], max_tokens=max_tokens, ignore_eos=True)  # first calls cost more
    start = perf_counter()
    outputs = llm.generate([list(prompt) for prompt in prompts], max_tokens=max_tokens, ignore_eos=True)
    seconds = perf_counter() - start
    return Run(
        method,
        tuple(tuple(output.token_ids) for output in outputs),
        tuple(output.stats.forwards for output in outputs),
        tuple(output.stats.rows for output in outputs),
        seconds,
        tuple(output.stats.runs for output in outputs),
    )


def row_of(run: Run, reference: Run, answers: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any]:
    """One row of the table: means, and 95 % bootstrap intervals over prompts.

    Args:
        run: what is judged.
        reference: static decoding, one position per step.
        answers: right answers.
    """
    pairs = list(zip(run.tokens, reference.tokens, strict=True))
    measures = {
        "forwards": np.array(run.forwards, dtype=float),
        "rows": np.array(run.rows, dtype=float),
        "exact": np.array([mine == tuple(right) for mine, right in zip(run.tokens, answers, strict=True)], dtype=float),
        "identical": np.array([mine == other for mine, other in pairs], dtype=float),
        "agree": np.array([np.mean(np.array(mine) == np.array(other)) for mine, other in pairs]),
    }
    row: dict[str, Any] = {"method": run.method}
    for name, values in measures.items():
        row[name] = float(values.mean())
        row[f"{name}_interval"] = interval(values, seed)
    return row | {"seconds": run.seconds}


def interval(values: npt.NDArray[np.float64], seed: int = 0) -> list[float]:
    """95 % bootstrap interval of a mean."""
    random = np.random.default_rng(seed)
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(-1)
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]

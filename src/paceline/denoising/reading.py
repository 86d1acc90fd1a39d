"""From logits to guesses: which token each position would get, how likely it is, and what positions are ordered by.

Everything is computed in float32 at least (softmax in half precision saturates: many confidences equal 1.0 and their order is decided by
chance) and comes to the host in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from paceline.core.errors import PacelineError
from paceline.core.rng import Purpose
from paceline.core.sampling import Sampling
from paceline.core.transform import argmax_ids, target_distribution, widen
from paceline.core.uniforms import stream, uniform_block
from paceline.denoising.canvas import Canvas, Flags, Floats, Ints
from paceline.denoising.guesses import Guesses

Measure = Literal["probability", "law", "margin", "entropy"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How logits are read.

    Args:
        measure: what `Guesses.score` holds: the token's log-probability at temperature 1 (LLaDA), its probability under the tempered and
            filtered law it was drawn from (Dream `maskgit_plus`), the lead of the likeliest token over the second there (`topk_margin`),
            or minus the entropy there (`entropy`).
        banned: ids that are never predicted: the mask, and ids that no token stands for.
        unsure: ids that are predicted but count as least confident (LLaDA `confidence_eos_eot_inf`).
        double: float64 throughout instead of float32.
    """

    measure: Measure = "probability"
    banned: tuple[int, ...] = ()
    unsure: tuple[int, ...] = ()
    double: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """Guesses wanted for one canvas; its rows of the logits follow those of the question before.

    Args:
        canvas: whose.
        positions: ascending.
        open: which of them are open.
        sampling: of the request.
        certain: positions to be decided now, whatever they look like.
    """

    canvas: Canvas
    positions: Ints
    open: Flags
    sampling: Sampling
    certain: Flags


def read(logits: Float[Tensor, "rows vocabulary"], questions: Many[Question], reading: Reading, entropy: bool = False) -> list[Guesses]:
    """Guesses of every question.

    Args:
        logits: at temperature 1, one row per asked position; possibly modified.
        questions: in row order.
        reading: how.
        entropy: whether rules want it.

    Raises:
        PacelineError: for logits that are not numbers.
    """
    with torch.inference_mode():
        table = logits.double() if reading.double else widen(logits)
        if reading.banned:
            table[:, list(reading.banned)] = float("-inf")
        columns = [_columns(table[rows], asked, reading, entropy) for rows, asked in _stretches(questions)]
        found: Floats = torch.cat(columns, 1).cpu().numpy()
    if np.isnan(found[1]).any():
        raise PacelineError("the model's logits are not numbers (NaN); load it with dtype=float32")
    guesses, row = [], 0
    for question in questions:
        part = found[:, row : row + len(question.positions)]
        row += len(question.positions)
        tokens = part[0].astype(np.int64)
        score = np.where(np.isin(tokens, reading.unsure), -np.inf, part[2])
        score = np.where(question.certain, np.inf, score)
        guesses.append(Guesses(question.positions, tokens, part[1], score, part[3] if entropy else part[3][:0], question.open))
    return guesses


def _stretches(questions: Many[Question]) -> list[tuple[slice, list[Question]]]:
    """Consecutive questions of equal sampling, which are read together, with their rows. Greedy ones share nothing but the settings;
    samples draw numbers of their own."""
    found: list[tuple[slice, list[Question]]] = []
    row = 0
    for question in questions:
        rows = slice(row, row + len(question.positions))
        row = rows.stop
        if found and replace(found[-1][1][-1].sampling, seed=0) == replace(question.sampling, seed=0):
            found[-1] = (slice(found[-1][0].start, rows.stop), [*found[-1][1], question])
        else:
            found.append((rows, [question]))
    return found


def _columns(
    logits: Float[Tensor, "rows vocabulary"], questions: Many[Question], reading: Reading, entropy: bool
) -> Float[Tensor, "4 rows"]:
    """Token, log-probability, score and entropy of rows of one sampling setting."""
    sampling = questions[0].sampling
    for token, bias in sampling.logit_bias.items():
        logits[:, token] += bias
    # Without temperature or filters the law is the softmax of the logits, and log-probabilities say it better.
    law = _law(logits, sampling) if filtered(sampling) or reading.measure != "probability" else None
    if sampling.greedy:
        tokens = torch.tensor(argmax_ids(logits), device=logits.device).clamp_(min=0)
    else:
        tokens = _drawn(law if law is not None else logits.softmax(-1), questions)
    total = logits.logsumexp(-1)
    logprob = logits.gather(-1, tokens[:, None])[:, 0] - total
    score = logprob if law is None else _measured(law, tokens, logprob, reading.measure)
    spread = _entropy((logits - total[:, None]).exp()) if entropy else torch.zeros_like(score)
    return torch.stack([tokens.double(), logprob.double(), score.double(), spread.double()])


def filtered(sampling: Sampling) -> bool:
    """Whether tokens are taken from another law than the softmax of the logits."""
    return sampling.temperature not in (0.0, 1.0) or sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _law(logits: Float[Tensor, "rows vocabulary"], sampling: Sampling) -> Float[Tensor, "rows vocabulary"]:
    """The tempered and filtered law; greedy decoding has temperature 1 here, as in Dream. Top-p comes before top-k, as there."""
    tempered = replace(sampling, temperature=sampling.temperature or 1.0)
    if sampling.top_k == 0 or sampling.top_p == 1:
        return target_distribution(logits, tempered)
    nucleus = target_distribution(logits, replace(tempered, top_k=0))
    return target_distribution(nucleus.log(), replace(tempered, temperature=1.0, top_p=1.0, min_p=0.0))


def _drawn(law: Float[Tensor, "rows vocabulary"], questions: Many[Question]) -> Int[Tensor, " rows"]:
    """A sample of each row by the Gumbel-max rule in float64 (half precision hurts masked diffusion: Zheng et al. 2024, arXiv 2409.02908).

    The numbers are a function of seed, position and tokens decided so far: neither the batch nor a draft of several states changes them.
    """
    width = law.shape[-1]
    noise = np.concatenate([_uniforms(question, width) for question in questions])
    with np.errstate(divide="ignore"):
        gumbel = torch.from_numpy(-np.log(-np.log(noise))).to(law.device)
    return (law.double().log() + gumbel).argmax(-1)


def _uniforms(question: Question, width: int) -> Floats:
    canvas = question.canvas
    streams = [stream(canvas.seed, int(position), Purpose.FILL) for position in question.positions]
    return uniform_block(streams, [canvas.committed * width] * len(streams), width)


def _measured(
    law: Float[Tensor, "rows vocabulary"], tokens: Int[Tensor, " rows"], logprob: Float[Tensor, " rows"], measure: Measure
) -> Float[Tensor, " rows"]:
    if measure == "law":
        return law.gather(-1, tokens[:, None])[:, 0]
    if measure == "margin":
        pair = law.topk(2, -1).values
        return pair[:, 0] - pair[:, 1]
    if measure == "entropy":
        return -_entropy(law)
    return logprob


def _entropy(law: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """In nats; the offset is Dream's."""
    return -(law * (law + 1e-10).log()).sum(-1)

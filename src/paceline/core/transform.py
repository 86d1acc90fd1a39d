"""From logits to tokens: the law that sampling options define, exact argmax, and draws by inverse cumulative sums.

Targets and drafters at every level share these functions, so that a distribution means the same thing on both sides of a verification.
Every function treats each row by itself: a row's result does not depend, not even in its last bit, on the rows beside it. Ties go to the
lowest id everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paceline.core.sampling import Sampling
from paceline.kernels.laws import Laws, kernels

INVALID = -1  # stands for a token where a row holds NaN or no mass at all

Law = tuple[float, int, float, float]
Likeliest = tuple[list[int], list[float]]  # ids and probabilities: largest first, of equal ones the lowest id, none without mass


def law_of(sampling: Sampling) -> Law:
    """The options that `target_distribution` reads; rows with equal laws can be transformed together."""
    return (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def widen(logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
    """At least float32: half precision has too few bits for probabilities; float64 is kept."""
    return logits if logits.dtype == torch.float64 else logits.float()


def argmax_ids(logits: Float[Tensor, "rows vocabulary"]) -> list[int]:
    """The likeliest token of each row, the lowest id among equals, on the host with one transfer.

    Returns:
        One id per row; `INVALID` where the row holds a NaN.
    """
    if logits.device.type == "cpu":
        # NumPy's argmax is vectorised where torch's is not (25 times at 32,000 ids) and also returns the first maximum, or the first NaN.
        table = widen(logits).detach().numpy()
        ids: list[int] = table.argmax(-1).tolist()
        best = table[range(len(ids)), ids]
        return [INVALID if value != value else token for token, value in zip(ids, best.tolist(), strict=True)]
    value, index = logits.max(dim=-1)  # documented: the first of several maxima; a NaN counts as the maximum
    found: list[int] = index.masked_fill(value.isnan(), INVALID).tolist()
    return found


def target_distribution(logits: Float[Tensor, "rows vocabulary"], sampling: Sampling) -> Float[Tensor, "rows vocabulary"]:
    """The law that tokens are sampled from.

    Temperature, top-k, top-p and min-p are applied in this order, each to the renormalised result of the one before, as `transformers`
    does. Unlike there, exactly `top_k` tokens stay and exactly the smallest nucleus: ties at the threshold go to the lowest ids.

    Args:
        logits: raw or already processed for history; not modified.
        sampling: greedy settings give a one-hot law.

    Returns:
        Probabilities in float32, or float64 if the logits are. Rows without a law (NaN, infinity, everything forbidden) hold NaN.
    """
    scores = widen(logits)
    if sampling.greedy:
        best, first = scores.max(dim=-1, keepdim=True)
        return torch.zeros_like(scores).scatter_(-1, first, 1.0).masked_fill_(best.isnan(), torch.nan)
    temperature = max(sampling.temperature, torch.finfo(scores.dtype).tiny)
    if (compiled := _compiled(scores)) is not None:
        return compiled.of(scores.contiguous(), temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    # Shifting first keeps tiny temperatures from overflowing.
    scores = (scores - scores.amax(-1, keepdim=True)).div_(temperature)
    if 0 < sampling.top_k < scores.shape[-1]:
        scores.masked_fill_(~largest(scores, sampling.top_k), -torch.inf)
    probs = scores.softmax(-1)
    if sampling.top_p >= 1 and sampling.min_p <= 0:
        return probs
    keep = _nucleus(probs, sampling.top_p) if sampling.top_p < 1 else probs > 0
    if sampling.min_p > 0:
        keep &= probs >= sampling.min_p * probs.amax(-1, keepdim=True)
    # A second softmax rather than a division by the sum: sums of one row and of many round differently.
    return scores.masked_fill_(~keep, -torch.inf).softmax(-1)


def draw(probs: Float[Tensor, "rows vocabulary"], uniforms: Sequence[float]) -> list[int]:
    """One token per row by inverting the cumulative sum in id order: the first id whose sum exceeds uniform times total.

    Args:
        probs: non-negative, not necessarily normalised; summed in float64.
        uniforms: one number in [0, 1) per row.

    Returns:
        One id per row, on the host with one transfer; `INVALID` where the row is no distribution.
    """
    width = probs.shape[-1]
    if (compiled := _compiled(probs, torch.float64)) is not None:
        return [token if token < width else INVALID for token in compiled.draw(probs.contiguous(), uniforms)]
    sums = probs.double().cumsum(-1)
    aim = torch.tensor(uniforms, dtype=torch.float64).to(sums.device).unsqueeze(-1) * sums[:, -1:]
    ids: list[int] = torch.searchsorted(sums, aim, right=True).squeeze(-1).tolist()
    # A uniform number below one stays below the total when rounded, so only NaN, infinite and empty rows are passed to the end.
    return [token if token < width else INVALID for token in ids]


def share(law: Float[Tensor, " vocabulary"], token: int) -> float:
    """What part of the law's mass a token has, summed in float64. Waits for the law's device."""
    if (compiled := _compiled(law)) is not None:
        return compiled.share(law.contiguous(), token)
    return float(law[token].double() / law.sum(dtype=torch.float64))


def refused(
    law: Float[Tensor, " vocabulary"], ids: Sequence[int], probs: Sequence[float], drawn: int
) -> Float[Tensor, " vocabulary"] | None:
    """What is left of a law when a token drawn from a few was rejected: what it has beyond their probabilities, without that token.

    Returns:
        A law in float64 of any mass; nothing where there is no kernel for it.
    """
    compiled = _compiled(law)
    return None if compiled is None else compiled.refuse(law.contiguous(), ids, probs, drawn)


def likeliest(laws: Sequence[Float[Tensor, " vocabulary"]], count: int) -> list[Likeliest]:
    """Of each law the `count` likeliest tokens, on the host.

    Args:
        laws: of one vocabulary, type and device; at least one.
    """
    if (compiled := _compiled(laws[0])) is not None:
        return compiled.likeliest([law.contiguous() for law in laws], count)
    values, ids = top(torch.stack(list(laws)), min(count, len(laws[0])))
    kept = (values > 0).sum(-1).tolist()
    return [(each[:size], probs[:size]) for each, probs, size in zip(ids.tolist(), values.tolist(), kept, strict=True)]


def _compiled(table: Tensor, *types: torch.dtype) -> Laws | None:
    """Kernels for rows like these: a tenth of the calls, and reads of the vocabulary that skip what has no mass.

    Args:
        types: what they can read beside float32.
    """
    if table.device.type != "cpu" or table.dtype not in (torch.float32, *types) or table.requires_grad:
        return None
    return kernels()


def largest(scores: Float[Tensor, "rows vocabulary"], count: int) -> Bool[Tensor, "rows vocabulary"]:
    """Marks exactly the `count` largest entries of each row; of equal ones the lowest ids."""
    if scores.device.type == "cpu":  # NumPy selects and sorts with vector instructions where torch does not
        place = scores.shape[-1] - count
        threshold = torch.from_numpy(np.partition(scores.numpy(), place, axis=-1)[:, place : place + 1])
    else:
        threshold = scores.topk(count).values[:, -1:]
    return _at_least(scores, threshold, torch.full_like(threshold, count, dtype=torch.int64))


def top(scores: Float[Tensor, "rows vocabulary"], count: int) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """The `count` largest entries of each row with their ids, largest first, equal ones by ascending id. No entry may be NaN."""
    ids = largest(scores, count).nonzero()[:, 1].view(len(scores), count)  # ascending ids
    values, order = scores.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _at_least(
    scores: Float[Tensor, "rows vocabulary"], threshold: Float[Tensor, "rows 1"], count: Int[Tensor, "rows 1"]
) -> Bool[Tensor, "rows vocabulary"]:
    """Marks `count` entries per row, given the value of the smallest one to keep."""
    if scores.device.type == "cpu":
        marks = scores.numpy() >= threshold.numpy()
        if (np.count_nonzero(marks, axis=-1, keepdims=True) <= count.numpy()).all():
            return torch.from_numpy(marks)  # no ties to cut; a device would have to wait for this answer
    equal = scores == threshold
    above = scores > threshold
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def _nucleus(probs: Float[Tensor, "rows vocabulary"], top_p: float) -> Bool[Tensor, "rows vocabulary"]:
    """Marks the smallest set of likeliest tokens whose mass reaches `top_p`: a token stays if the mass before it is below."""
    if probs.device.type == "cpu":
        cuts = [_cut(row, top_p) for row in probs.numpy()]
        threshold = torch.tensor([value for value, _ in cuts], dtype=probs.dtype).unsqueeze(-1)
        return _at_least(probs, threshold, torch.tensor([count for _, count in cuts]).unsqueeze(-1))
    descending = probs.sort(-1, descending=True).values
    count = 1 + (descending.double().cumsum(-1)[:, :-1] < top_p).sum(-1, keepdim=True)
    return _at_least(probs, descending.gather(-1, count - 1), count)


def _cut(probs: npt.NDArray[np.floating], top_p: float) -> tuple[float, int]:
    """Smallest probability in the nucleus of a row, and the size of the nucleus."""
    # All tokens below (1 - p) / vocabulary together are lighter than 1 - p, so the nucleus ends before them; the factor is for rounding.
    heavy = np.sort(probs[probs > 0.5 * (1 - top_p) / len(probs)])[::-1]
    if not len(heavy):
        return np.nan, 1
    count = 1 + int(np.count_nonzero(heavy[:-1].cumsum(dtype=np.float64) < top_p))
    return float(heavy[count - 1]), count

"""Log-probabilities of emitted tokens under the model's raw logits, as vLLM reports them: before penalties, temperature and filters."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.errors import PacelineError
from paceline.core.transform import top, widen
from paceline.core.verdict import TokenLogprob


def token_logprobs(logits: Float[Tensor, "rows vocabulary"], tokens: Many[int], alternatives: Many[int]) -> list[TokenLogprob]:
    """Score one emitted token per row.

    Args:
        logits: raw rows that decided the tokens.
        tokens: the emitted token of each row.
        alternatives: how many of the likeliest tokens to report beside it; equal ones by ascending id.

    Raises:
        PacelineError: if logits are NaN.
    """
    scores = widen(logits).log_softmax(-1)
    own = scores.gather(-1, torch.tensor(tokens, device=scores.device).unsqueeze(-1)).squeeze(-1).tolist()
    if any(value != value for value in own):
        raise PacelineError("the model's logits are not finite, so tokens have no log-probability; load the weights with dtype=float32")
    most = min(max(alternatives), scores.shape[-1])
    if most == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, own, strict=True)]
    values, ids = (part.tolist() for part in top(scores, most))
    return [
        TokenLogprob(token, value, tuple(zip(best_ids[:count], best[:count], strict=True)))
        for token, value, best_ids, best, count in zip(tokens, own, ids, values, alternatives, strict=True)
    ]

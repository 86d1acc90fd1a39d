"""What deciding several positions at once can cost, for a model whose predictions are the marginals of one joint law.

If each of n likeliest tokens has probability above 1 - eps (Fast-dLLM, arXiv 2505.22618, theorem 1 and appendix).
"""

from __future__ import annotations

from math import log


def same_argmax(positions: int, eps: float) -> bool:
    """Whether the likeliest tokens one by one are certainly the likeliest together; the bound is tight."""
    return (positions + 1) * eps <= 1


def total_variation(positions: int, eps: float) -> float:
    """Upper bound of the total variation between the product of the marginals and the joint law."""
    return (3 * positions - 1) / 2 * eps


def divergence(positions: int, eps: float, vocabulary: int) -> float:
    """Upper bound of the Kullback-Leibler divergence from the product of the marginals to the joint law, in nats."""
    spread = 0.0 if eps in (0.0, 1.0) else -eps * log(eps) - (1 - eps) * log(1 - eps)
    return (positions - 1) * (spread + eps * log(vocabulary - 1))

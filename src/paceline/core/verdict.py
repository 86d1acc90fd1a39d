"""What verification decides about one sequence in one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of an emitted token, and of the likeliest ones, under raw logits (before penalties, temperature, filters)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judged tree of one sequence.

    Args:
        accepted: nodes on the accepted path below the root, top down.
        tokens: ids that become output: the accepted nodes' tokens, then the next pending token. Never empty.
        logprobs: one entry per token, when the request asked for them.
    """

    accepted: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def pending(self) -> int:
        """The token that is output now and enters memory with the next forward."""
        return self.tokens[-1]

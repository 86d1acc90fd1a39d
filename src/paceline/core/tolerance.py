"""How far from the target's first choice a drafted token may be and still be accepted: what makes a greedy method approximate."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Accept a drafted token that is among the `beta` largest logits of its row and at most `tau` below the largest.

    Generalised aggressive decoding (Xia et al. 2022, arXiv 2203.16487, sec. 3.3). It concerns greedy requests only: samples are always
    drawn from the target's law. Logits are compared after penalties and bans and before temperature; with `beta` 1 the rule is exact
    matching, whatever `tau` is.

    Args:
        beta: at least 1.
        tau: gap of logits, which is also the gap of log-probabilities; at least 0.

    Raises:
        UsageError: for values out of range.
    """

    beta: int = 1
    tau: float = 0.0

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise UsageError(f"beta={self.beta} must be at least 1 (1 accepts nothing but the target's first choice)")
        if not self.tau >= 0:
            raise UsageError(f"tau={self.tau:g} must be at least 0")

    @property
    def exact(self) -> bool:
        """Whether it accepts nothing but what plain decoding would emit."""
        return self.beta == 1

"""What a method promises about its output, per decoding mode."""

from __future__ import annotations

from enum import StrEnum


class Guarantee(StrEnum):
    """The four promises; the audit checks exactly the one a method declares."""

    TOKEN_IDENTICAL = "token-identical"  # greedy output equals plain decoding, token for token
    DISTRIBUTION_IDENTICAL = "distribution-identical"  # samples follow the law of plain sampling
    OWN_WEIGHTS = "own-weights"  # identical to plain decoding of the method's own trained weights
    BOUNDED = "bounded"  # approximate; the quality cost is measured and printed

    @property
    def lossless(self) -> bool:
        """Whether the output is that of plain decoding of some fixed weights."""
        return self is not Guarantee.BOUNDED

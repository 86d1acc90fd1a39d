"""STAND: drafts sampled from the target's own probabilities at recently seen n-grams (arXiv 2506.04708)."""

from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.drafter import Stand

__all__ = ["Stand", "StandConfig"]

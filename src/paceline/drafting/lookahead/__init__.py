"""Lookahead: multi-branch drafts from what was prompted and what was answered before (Zhao et al. 2023, arXiv 2312.12728)."""

from paceline.drafting.lookahead.config import LookaheadConfig
from paceline.drafting.lookahead.drafter import Lookahead

__all__ = ["Lookahead", "LookaheadConfig"]

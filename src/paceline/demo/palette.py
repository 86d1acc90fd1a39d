"""Colours of the demo: from one token per forward (plain grey) to long runs (deep teal)."""

from __future__ import annotations

INK = "#1f2933"
MUTED = "#9aa5b1"
PLAIN = "#b8c2cc"
RUN_COLOURS = ("#cbd2d9", "#a7dcd1", "#6cc3b5", "#2fa598", "#15857b", "#0b635d")  # 1, 2, ... tokens; the last for all longer runs


def run_colour(tokens: int) -> str:
    """Colour of a forward that made so many tokens."""
    return RUN_COLOURS[min(max(tokens, 1), len(RUN_COLOURS)) - 1]

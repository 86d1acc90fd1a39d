"""Colours of the demo: a forward that made one token is grey, and the longer its run, the deeper the teal."""

from __future__ import annotations

from dataclasses import dataclass

INK = "#1f2933"
MUTED = "#9aa5b1"
PLAIN = "#b8c2cc"
FAST = "#2fa598"


@dataclass(frozen=True, slots=True)
class Shade:
    """Colour of all forwards that made `least` tokens or more, up to the next shade.

    Args:
        label: for legends.
        light, dark: on a light and on a dark page.
        tint: opacity of the background of drafted text.
    """

    least: int
    label: str
    light: str
    dark: str
    tint: float


SHADES = (
    Shade(1, "1", "#cbd2d9", "#46525e", 0.0),
    Shade(2, "2", "#a7dcd1", "#255c58", 0.13),
    Shade(3, "3", "#6cc3b5", "#2c7d76", 0.18),
    Shade(4, "4-5", "#2fa598", "#35a094", 0.24),
    Shade(6, "6-8", "#15857b", "#53c2b3", 0.30),
    Shade(9, "9+", "#0b635d", "#93e3d6", 0.37),
)


def shade_of(tokens: int) -> int:
    """Index into `SHADES` of a forward that made so many tokens."""
    return max(index for index, shade in enumerate(SHADES) if shade.least <= max(tokens, 1))

"""The allocation ledger: live and peak bytes by category, so that memory claims can be checked instead of believed."""

from __future__ import annotations

from collections.abc import Mapping

from paceline.core.errors import UsageError

CATEGORIES = ("weights", "kv", "draft_kv", "scratch", "logits", "mask", "activations")


class Ledger:
    """Bytes held now and at most, by category. The usual categories always exist; any other name makes a new one.

    A *part* is a category whose bytes lie inside another's (`kv_used` inside `kv`, `scratch` inside the pools): it has its own live and
    peak, but no share in the total.
    """

    def __init__(self) -> None:
        self.live: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.peak: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.total = 0
        self.total_peak = 0
        self._parts = {"scratch"}

    def part(self, category: str) -> None:
        """Declare a category to lie inside another one.

        Raises:
            UsageError: if it has been counted in the total already.
        """
        if self.live.get(category, 0) and category not in self._parts:
            raise UsageError(f"ledger category {category!r} already counts in the total; declare it a part before adding bytes")
        self._parts.add(category)
        self.live.setdefault(category, 0)
        self.peak.setdefault(category, 0)

    def add(self, category: str, count: int) -> None:
        """Book `count` bytes as allocated."""
        self.set(category, self.live.get(category, 0) + count)

    def sub(self, category: str, count: int) -> None:
        """Book `count` bytes as freed.

        Raises:
            UsageError: if the category holds less than that.
        """
        self.set(category, self.live.get(category, 0) - count)

    def set(self, category: str, count: int) -> None:
        """Make `count` the live bytes of a category.

        Raises:
            UsageError: for a negative count.
        """
        if count < 0:
            raise UsageError(f"ledger category {category!r} would hold {count} bytes; something was freed that was never added")
        if category not in self._parts:
            self.total += count - self.live.get(category, 0)
            self.total_peak = max(self.total_peak, self.total)
        self.live[category] = count
        self.peak[category] = max(self.peak.get(category, 0), count)

    def passing(self, needs: Mapping[str, int]) -> None:
        """Book what a forward needed at once, beside what is live, and has given back: only peaks change."""
        for category, count in needs.items():
            self.peak[category] = max(self.peak.get(category, 0), self.live.get(category, 0) + count)
        together = sum(count for category, count in needs.items() if category not in self._parts)
        self.total_peak = max(self.total_peak, self.total + together)

    def peak_bytes(self) -> dict[str, int]:
        """Peak bytes of every category, and under `total` the peak of their sum (parts left out)."""
        return {**self.peak, "total": self.total_peak}

    def reset_peaks(self) -> None:
        """Start a new measurement: peaks fall to what is live now."""
        self.peak = dict(self.live)
        self.total_peak = self.total

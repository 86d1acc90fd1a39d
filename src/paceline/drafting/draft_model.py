"""A smaller model drafts: a chain, or a static tree grown layer by layer, over a memory of its own.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023), static trees as in SpecInfer (Miao et al. 2024) and Sequoia
(Chen et al. 2024): siblings are drawn from the draft's distribution when the target samples, without replacement (Sequoia) or with it
(SpecInfer), and are the likeliest tokens when it is greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from paceline.core.errors import UsageError
from paceline.drafting.base import DraftContext, DraftLimits, ForwardRunner
from paceline.drafting.draft_static import StaticDrafter
from paceline.planning.static_tree import Shape


@dataclass(frozen=True, slots=True)
class DraftModelConfig:
    """Options of the draft model.

    Args:
        length: depth of the draft.
        branching: children per node at each depth, `x`-separated as in `3x2x1`; empty is a chain. Depths beyond the list have one.
        temperature: of the draft when the target samples; negative means the target's own.
        replacement: draw siblings independently, as SpecInfer does, and judge them by its rule; they may repeat, so fewer are accepted.
    """

    length: int = 4
    branching: str = ""
    temperature: float = -1.0
    replacement: bool = False

    def __post_init__(self) -> None:
        if self.length < 0:
            raise UsageError(f"draft-model: length={self.length} must be >= 0")
        try:
            widths = self.widths
        except ValueError:
            raise UsageError(f"draft-model: branching={self.branching!r} must be numbers joined by x, as in 3x2x1") from None
        if any(width < 1 for width in widths):
            raise UsageError(f"draft-model: branching={self.branching!r} must not contain zero")

    @property
    def most_draft(self) -> int:
        """Nodes of the whole tree."""
        return sum(accumulate(self.widths, mul))

    @property
    def widths(self) -> list[int]:
        """Children per node at each depth."""
        given = [int(part) for part in self.branching.split("x")] if self.branching else []
        return (given + [1] * self.length)[: self.length]


class DraftModel(StaticDrafter):
    """Drafts chains and trees of equal branching with a second decoder."""

    Config = DraftModelConfig

    def __init__(self, config: DraftModelConfig, runner: ForwardRunner, eos: frozenset[int], coupled: bool = False) -> None:
        super().__init__(runner, eos, config.temperature, coupled, config.replacement)
        self.config = config
        self._shapes: dict[tuple[int, ...], Shape] = {}

    @classmethod
    def build(cls, config: DraftModelConfig, context: DraftContext) -> DraftModel:
        """A drafter over the context's draft runner.

        Raises:
            UsageError: if the user named no draft model.
        """
        if context.draft is None:
            raise UsageError("method 'draft-model' needs a draft model; name one with draft=... (--draft)")
        return cls(config, context.draft, context.eos, context.coupled)

    def shape(self, limit: DraftLimits) -> Shape:
        """As many full layers as the node and depth limits leave room for."""
        widths: list[int] = []
        nodes, layer = 0, 1
        for width in self.config.widths[: limit.depth]:
            layer *= width
            if nodes + layer > limit.nodes:
                break
            nodes += layer
            widths.append(width)
        key = tuple(widths)
        if key not in self._shapes:
            self._shapes[key] = even_shape(key)
        return self._shapes[key]


def even_shape(widths: tuple[int, ...]) -> Shape:
    """A tree with `widths[d]` children below every node of depth d, nodes numbered layer by layer."""
    shape: list[tuple[int, ...]] = []
    layer, count = 1, 1
    for width in (*widths, 0):
        shape.extend(tuple(range(count + at * width, count + (at + 1) * width)) for at in range(layer))
        layer *= width
        count += layer
    return tuple(shape)

"""Sequoia: the static tree that measured acceptance makes the best, filled by a draft model (arXiv 2402.12374)."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from paceline.core.batch import Taps
from paceline.core.errors import UsageError
from paceline.core.request import Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits, ForwardRunner
from paceline.drafting.draft_static import StaticDrafter
from paceline.planning.static_tree import AcceptanceTable, Shape, optimal_shape, parse_acceptance


@dataclass(frozen=True, slots=True)
class SequoiaConfig:
    """Options of the optimal static tree.

    Args:
        nodes: size of the tree.
        depth: longest path.
        acceptance: chance of the child of each rank to be the accepted one, ranks joined by `/`, depths by `:` (the last one stands for
            all deeper ones), as `benchmarks/dyspec.py` measures and prints it.
        temperature: of the draft when the target samples; negative means the target's own.
    """

    nodes: int = 64
    depth: int = 16
    acceptance: str = "0.6/0.15/0.07/0.04/0.02/0.01"
    temperature: float = -1.0

    def __post_init__(self) -> None:
        if self.nodes < 0 or self.depth < 0:
            raise UsageError(f"sequoia: nodes={self.nodes} and depth={self.depth} must be >= 0")
        try:
            parse_acceptance(self.acceptance)
        except ValueError:
            raise UsageError(f"sequoia: acceptance={self.acceptance!r} must be numbers in [0, 1], as in 0.6/0.2:0.5/0.1") from None

    @property
    def most_draft(self) -> int:
        """Nodes of the largest draft."""
        return self.nodes


class Sequoia(StaticDrafter):
    """Drafts the optimal static tree. `measured` counts what is accepted, to plan the next tree from."""

    Config = SequoiaConfig

    def __init__(self, config: SequoiaConfig, runner: ForwardRunner, eos: frozenset[int], coupled: bool = False) -> None:
        super().__init__(runner, eos, config.temperature, coupled)
        self.config = config
        self.measured = AcceptanceTable()
        self._acceptance = parse_acceptance(config.acceptance)
        self._shapes: dict[tuple[int, int], Shape] = {}

    @classmethod
    def build(cls, config: SequoiaConfig, context: DraftContext) -> Sequoia:
        """A drafter over the context's draft runner; its tree is planned now.

        Raises:
            UsageError: if the user named no draft model.
        """
        if context.draft is None:
            raise UsageError("method 'sequoia' needs a draft model; name one with draft=... (--draft)")
        drafter = cls(config, context.draft, context.eos, context.coupled)
        drafter.shape(DraftLimits(config.nodes, config.depth))
        return drafter

    def shape(self, limit: DraftLimits) -> Shape:
        """The best tree within the limits."""
        key = (min(self.config.nodes, limit.nodes), min(self.config.depth, limit.depth))
        if key not in self._shapes:
            self._shapes[key] = optimal_shape(self._acceptance, *key)
        return self._shapes[key]

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Keep the draft memory of what was accepted, and count it."""
        super().observe(sequences, trees, verdicts, taps)
        for tree, verdict in zip(trees, verdicts, strict=True):
            self.measured.observe(tree, verdict)

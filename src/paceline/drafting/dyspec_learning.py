"""What DySpec learns from past steps: how often draws are accepted, how large trees should be, and where to put the threshold."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from math import ceil, log2

LEAST_THRESHOLD, MOST_THRESHOLD = 1e-4, 0.5
BINS = 16  # of the draft probability, each half as wide as the one above
PRIOR = 4.0  # pseudo-observations per bin that say what the draft says


@dataclass(slots=True)
class AcceptanceCurve:
    """Chance of a draw to be accepted, as a function of its draft probability; an online fit (`value=calibrated`).

    First draws and later siblings have curves of their own: where the draft equals the target, a first draw is always accepted however
    unlikely its token, and a sibling never.

    Args:
        forget: what a new observation leaves of older ones in its bin.
    """

    forget: float = 0.998
    accepted: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])
    offered: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])

    def __call__(self, share: float, rank: int) -> float:
        """Estimated chance of a draw of this probability and rank."""
        curve, at = _place(share, rank)
        return (self.accepted[curve][at] + PRIOR * share) / (self.offered[curve][at] + PRIOR)

    def observe(self, share: float, rank: int, accepted: bool) -> None:
        """A draw was judged."""
        curve, at = _place(share, rank)
        self.accepted[curve][at] = self.accepted[curve][at] * self.forget + accepted
        self.offered[curve][at] = self.offered[curve][at] * self.forget + 1.0

    def table(self) -> list[dict[str, float]]:
        """Acceptance against draft probability, one row per bin that has been observed."""
        rows = []
        for later, (accepted, offered) in enumerate(zip(self.accepted, self.offered, strict=True)):
            for at in range(BINS - 1, -1, -1):
                if offered[at] > 0:
                    span = {"from": 0.0 if at == BINS - 1 else 2.0 ** -(at + 1), "to": 2.0**-at}
                    rows.append({"later": float(later), **span, "offered": offered[at], "acceptance": accepted[at] / offered[at]})
        return rows


def _place(share: float, rank: int) -> tuple[int, int]:
    """Curve and bin of a draw: bin b holds probabilities in (2^-(b+1), 2^-b]."""
    return min(rank, 1), min(BINS - 1, int(-log2(max(share, 2.0**-BINS))))


@dataclass(slots=True)
class Threshold:
    """The threshold of one sequence: after each step multiplied by the square root of (nodes wanted / budget).

    Args:
        value: at first.
        adaptive: whether it moves at all.
    """

    value: float
    adaptive: bool = True

    def observe(self, wanted: int, budget: int) -> None:
        """A tree of this budget wanted so many nodes. Only past steps count, so exactness is not touched."""
        if self.adaptive and budget > 0:
            moved = self.value * (wanted / budget) ** 0.5
            self.value = min(MOST_THRESHOLD, max(LEAST_THRESHOLD, moved))

    def rescale(self, before: int, after: int) -> None:
        """The budget changed: the threshold is inversely proportional to it."""
        self.value = min(MOST_THRESHOLD, max(LEAST_THRESHOLD, self.value * before / after))


@dataclass(slots=True)
class BudgetTuner:
    """The budget with the most expected tokens per second, from the measured cost of forwards and the trees of past steps.

    From every tree it learns, for each size k, what the k best nodes together were estimated to bring, and how many draft forwards and
    rows they took; and from the verdicts, by how much such estimates are off.

    Args:
        target: seconds of a target forward with n rows.
        draft: seconds of a draft forward with n rows.
        layered: whether a layer of nodes costs one draft forward, or every node that has children one of its own.
        weight: of a new tree.
        explore: every so many steps a larger budget than the best known is tried (a small one where drafting does not pay).
    """

    target: Callable[[int], float]
    draft: Callable[[int], float]
    layered: bool = True
    weight: float = 0.05
    explore: int = 32
    steps: int = 0
    estimated: float = 1.0  # of past steps, with fading memory; the pair starts as one well-estimated token
    accepted: float = 1.0
    gain: list[float] = field(default_factory=lambda: [0.0])
    forwards: list[float] = field(default_factory=lambda: [0.0])
    rows: list[float] = field(default_factory=lambda: [0.0])

    def choose(self, sequences: int, most: int) -> int:
        """Nodes for each of so many sequences, at most `most`."""
        self.steps += 1
        if len(self.gain) == 1:
            return most  # nothing known yet
        best = max(range(min(most, len(self.gain) - 1) + 1), key=lambda nodes: self.rate(sequences, nodes))
        if self.steps % self.explore == 0:
            return min(most, max(4, 2 * best))
        return best

    def rate(self, sequences: int, nodes: int) -> float:
        """Expected tokens per second with a budget that has been tried."""
        trust = self.accepted / self.estimated
        tokens = sequences * (1.0 + trust * self.gain[nodes])
        seconds = self.target(sequences * (nodes + 1))
        if nodes:
            calls = max(1.0, self.forwards[nodes])
            seconds += calls * self.draft(ceil(sequences * max(1.0, self.rows[nodes] / calls)))
        return tokens / seconds

    def observe(self, parent: Many[int], depth: Many[int], estimates: Many[float], accepted: int) -> None:
        """Learn from one judged tree.

        Args:
            parent, depth, estimates: of every node, root first, in the order they were drawn.
            accepted: nodes on the accepted path.
        """
        ranked = sorted(range(1, len(parent)), key=lambda node: (-estimates[node], node))
        if not ranked:
            return
        parents: set[int] = set()
        layers: set[int] = set()
        total = 0.0
        for size, node in enumerate(ranked, start=1):
            total += estimates[node]
            parents.add(parent[node])
            layers.add(depth[node])
            self._learn(size, total, len(layers) if self.layered else len(parents), len(parents))
        fade = 1.0 - self.weight
        self.estimated = self.estimated * fade + total
        self.accepted = self.accepted * fade + accepted

    def _learn(self, size: int, *observed: float) -> None:
        for curve, value in zip((self.gain, self.forwards, self.rows), observed, strict=True):
            if size == len(curve):
                curve.append(value)
            else:
                curve[size] += self.weight * (value - curve[size])

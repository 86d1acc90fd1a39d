"""Recursive rejection for sampled children; chosen children are the special case of a point-mass draft.

At a node with target law p and children y_1, y_2, .. drawn in this order from q, let R = p and D = q. Accept y_i with probability
min(1, R[y_i] / D[y_i]); on rejection R becomes the normalised positive part of R - D, and D stays (draws with replacement: SpecInfer,
arXiv 2305.09781, sec. 4.3) or loses y_i and is renormalised (without: Sequoia, arXiv 2402.12374, sec. 3.2; DySpec, arXiv 2410.11744).
Behind the last child a token drawn from R is emitted, at a leaf one drawn from p. The emitted token follows p exactly, provided that
whether to draw another child never depended on that child's value. The ratio test is wrong for children that were *chosen*: their D is
a point mass, so that y_i is accepted with probability R[y_i], and else R loses y_i. In law that is sample-and-match.

`Odds` is the rule as a pure function, apart from random numbers: tests enumerate its outcomes exactly. `Opening` is where it starts. Most
first children are accepted, and that takes two numbers; whole laws are worked on only once a child was rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import isfinite, nan

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paceline.core.errors import PacelineError
from paceline.core.rng import Purpose
from paceline.core.transform import INVALID, draw, refused, share
from paceline.core.tree import ROOT, Distribution, Proposal
from paceline.verification.rows import TreeRows
from paceline.verification.walk import Path

CHOSEN = Proposal({})  # of trees whose children are all point masses


@dataclass(frozen=True, slots=True)
class Odds:
    """Where several nodes stand after the same number of rejected children.

    Args:
        residual: R of each node, times its mass. (Dividing a row costs more than remembering its sum.)
        residual_mass: sums of the rows of `residual`.
        draft: D of each node, times its mass; zero where children were chosen.
        draft_mass: sums of the rows of `draft`; zero also where nothing is left to draw.
        chosen: nodes whose children are point masses.
        replacement: nodes whose children were drawn with replacement.
    """

    residual: Float[Tensor, "nodes vocabulary"]
    residual_mass: Float[Tensor, "nodes 1"]
    draft: Float[Tensor, "nodes vocabulary"]
    draft_mass: Float[Tensor, "nodes 1"]
    chosen: Bool[Tensor, "nodes 1"]
    replacement: Bool[Tensor, "nodes 1"]

    def law(self, at: int) -> Float[Tensor, " vocabulary"]:
        """R of a node, times its mass."""
        return self.residual[at]

    def offer(self, tokens: Many[int]) -> list[float]:
        """R[y] / D[y] of the next child of each node: accepted with this probability, certainly from one upwards."""
        column = _column(tokens, self.residual)
        drafted = torch.where(self.chosen, 1.0, self.draft.gather(-1, column) / self.draft_mass)
        ratios: list[float] = (self.residual.gather(-1, column) / self.residual_mass / drafted).squeeze(-1).tolist()
        return ratios

    def rejected(self, tokens: Many[int]) -> Odds:
        """The odds after that child was rejected."""
        column = _column(tokens, self.residual)
        drafted = self.draft / torch.where(self.draft_mass > 0, self.draft_mass, 1.0)
        # A rejected token had R < D (or is a point mass being removed), so nothing of it is left in either case.
        remaining = (self.residual / self.residual_mass).sub_(drafted).clamp_(min=0.0).scatter_(-1, column, 0.0)
        mass = remaining.sum(-1, keepdim=True)
        # No mass: R equalled D, whose children are never rejected but for rounding. R itself is then the law to keep.
        some = mass > 0
        without = torch.where(self.replacement, self.draft, self.draft.scatter(-1, column, 0.0))
        return Odds(
            torch.where(some, remaining, self.residual),
            torch.where(some, mass, self.residual_mass),
            without,
            without.sum(-1, keepdim=True),
            self.chosen,
            self.replacement,
        )

    def left(self, at: int, token: int) -> Float[Tensor, " vocabulary"]:
        """R of a node, times its mass, after its last child was rejected."""
        return self.at([at]).rejected([token]).residual[0]

    def at(self, places: Many[int]) -> Odds:
        """The odds of some of the nodes."""
        if len(places) == len(self.chosen):
            return self
        index = torch.tensor(places, device=self.chosen.device)
        return Odds(
            self.residual[index],
            self.residual_mass[index],
            self.draft[index],
            self.draft_mass[index],
            self.chosen[index],
            self.replacement[index],
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """Where several nodes stand before any of their children was judged.

    Args:
        laws: p of each node.
        drafts: q of each node, dense or sparse; `None` for chosen children.
        replacement: whether each node's children were drawn with replacement.

    Raises:
        PacelineError: if a draft distribution is wider than the target's vocabulary.
    """

    laws: tuple[Float[Tensor, " vocabulary"], ...]
    drafts: tuple[Distribution | None, ...]
    replacement: tuple[bool, ...]

    def __post_init__(self) -> None:
        known, vocabulary = max((len(q.probs) for q in self.drafts if q is not None), default=0), len(self.laws[0])
        if known > vocabulary:
            raise PacelineError(f"the draft knows {known} tokens but the target {vocabulary}; use a draft with the target's tokenizer")

    def law(self, at: int) -> Float[Tensor, " vocabulary"]:
        """p of a node."""
        return self.laws[at]

    def offer(self, tokens: Many[int]) -> list[float]:
        """p[y] / q[y] of the first child of each node: accepted with this probability, certainly from one upwards."""
        if self.laws[0].device.type != "cpu":
            return self.odds().offer(tokens)  # one wait for the device
        shares = zip((share(law, token) for law, token in zip(self.laws, tokens, strict=True)), self.drafts, tokens, strict=True)
        return [p if q is None else p / drawn if (drawn := q.share(token)) else nan for p, q, token in shares]

    def rejected(self, tokens: Many[int]) -> Odds:
        """The odds after that child was rejected."""
        return self.odds().rejected(tokens)

    def left(self, at: int, token: int) -> Float[Tensor, " vocabulary"]:
        """What is left of p at a node, of any mass, after its only child was rejected."""
        q, found = self.drafts[at], None
        if q is None:
            found = refused(self.laws[at], (), (), token)
        elif q.ids is not None:
            found = refused(self.laws[at], *q.few(), token)
        if found is not None:
            return found
        return self.at([at]).odds().left(0, token)

    def odds(self) -> Odds:
        """The same with whole laws, in float64 on the target's device."""
        law = torch.stack(self.laws).double()
        draft = torch.stack([_dense(q, law.shape[-1], law.device) for q in self.drafts])
        return Odds(
            law,
            law.sum(-1, keepdim=True),
            draft,
            draft.sum(-1, keepdim=True),
            torch.tensor([q is None for q in self.drafts], device=law.device).unsqueeze(-1),
            torch.tensor(self.replacement, device=law.device).unsqueeze(-1),
        )

    def at(self, places: Many[int]) -> Opening:
        """The opening of some of the nodes."""
        if len(places) == len(self.drafts):
            return self
        laws, drafts = tuple(self.laws[at] for at in places), tuple(self.drafts[at] for at in places)
        return Opening(laws, drafts, tuple(self.replacement[at] for at in places))


def _column(tokens: Many[int], beside: Tensor) -> Int[Tensor, "nodes 1"]:
    return torch.tensor(tokens, device=beside.device).unsqueeze(-1)


def _dense(q: Distribution | None, vocabulary: int, device: torch.device) -> Float[Tensor, " vocabulary"]:
    """A draft distribution over the target's vocabulary, in float64; nothing where children were chosen."""
    return torch.zeros(vocabulary, dtype=torch.float64, device=device) if q is None else q.dense(vocabulary, device)


class Rejection:
    """Walks the trees of one step in lockstep, one level at a time; sequences share device work, never random numbers."""

    def __init__(self, rows: TreeRows, members: Many[int]) -> None:
        self.rows, self.members = rows, members
        self.children = {member: rows.trees[member].children() for member in members}
        self.accepted: dict[int, list[int]] = {member: [] for member in members}
        self.last: dict[int, tuple[Float[Tensor, " vocabulary"], float]] = {}  # law and number of each sequence's last token

    def paths(self) -> list[Path]:
        """Accepted nodes and emitted tokens of every member.

        Raises:
            PacelineError: if logits are not finite, or a proposal gives a child no probability that stands in its tree.
        """
        live = dict.fromkeys(self.members, ROOT)
        while live:
            live = self._level(live)
        kinds: dict[torch.dtype, list[int]] = {}  # laws as the target gave them, and residuals
        for member in self.members:
            kinds.setdefault(self.last[member][0].dtype, []).append(member)
        tokens: dict[int, int] = {}
        for alike in kinds.values():
            laws, numbers = zip(*(self.last[member] for member in alike), strict=True)
            tokens.update(zip(alike, draw(torch.stack(laws), numbers), strict=True))
        paths = []
        for member in self.members:
            accepted = self.accepted[member]
            end = self.rows.starts[member] + (accepted[-1] if accepted else ROOT)
            emitted = (*(self.rows.trees[member].token[node] for node in accepted), self.rows.checked(end, tokens[member]))
            paths.append((tuple(accepted), emitted))
        return paths

    def _laws(self, live: Mapping[int, int]) -> tuple[Float[Tensor, " vocabulary"], ...]:
        """Target laws of one node per live sequence."""
        starts = self.rows.starts
        laws = self.rows.laws
        unknown = {member: node for member, node in live.items() if starts[member] + node not in laws}
        if unknown:
            asked = self.rows.ahead(unknown)
            laws.update(zip(asked, self.rows.distribution(asked), strict=True))
        return tuple(laws[starts[member] + node] for member, node in live.items())

    def _level(self, live: dict[int, int]) -> dict[int, int]:
        """Judge one node per live sequence; returns the sequences that descend, with the child they descend to."""
        members, nodes = list(live), list(live.values())
        rows = [self.rows.starts[member] + node for member, node in live.items()]
        families = [self.children[member][node] for member, node in live.items()]
        laws = self._laws(live)
        reached: dict[int, int] = {}
        asking: list[int] = []  # places whose children so far were all rejected; `odds` holds exactly these
        for place, family in enumerate(families):
            if family:
                asking.append(place)
            else:  # the very sample of plain decoding
                self.last[members[place]] = (laws[place], self.rows.uniform(rows[place], Purpose.TARGET))
        if not asking:
            return reached
        proposals = [self.rows.trees[members[place]].proposal or CHOSEN for place in asking]
        odds: Opening | Odds = Opening(
            tuple(laws[place] for place in asking),
            tuple(proposal.q.get(nodes[place]) for proposal, place in zip(proposals, asking, strict=True)),
            tuple(proposal.replacement for proposal in proposals),
        )
        rank = 0
        while asking:
            offered = [families[place][rank] for place in asking]
            tokens = [self.rows.trees[members[place]].token[node] for place, node in zip(asking, offered, strict=True)]
            refused = []
            for at, ratio in enumerate(odds.offer(tokens)):
                place = asking[at]
                if not isfinite(ratio):
                    raise self._impossible(odds, at, rows[place], tokens[at])
                if self.rows.uniform(rows[place], Purpose.ACCEPT, rank) < ratio:
                    reached[members[place]] = offered[at]
                    self.accepted[members[place]].append(offered[at])
                elif rank + 1 < len(families[place]):
                    refused.append(at)
                else:
                    self.last[members[place]] = (odds.left(at, tokens[at]), self.rows.uniform(rows[place], Purpose.RESIDUAL))
            if refused:
                odds = odds.at(refused).rejected([tokens[at] for at in refused])
            asking = [asking[at] for at in refused]
            rank += 1
        return reached

    def _impossible(self, odds: Opening | Odds, at: int, row: int, token: int) -> PacelineError:
        """Why a ratio is not a number: the target's law, or a proposal that is not what the child was drawn from."""
        if bool(odds.law(at).isnan().any()):
            self.rows.checked(row, INVALID)
        return PacelineError(
            f"token {token} stands in the tree of sequence {self.rows.sequences[self.rows.owner[row]].uid} but its proposal gives it no "
            "probability; the drafter must report the distribution it drew from, and draw no token twice without replacement"
        )

"""Drawing STAND's trees in plain Python, where there is no kernel: Gumbel top-k level by level, within a template and a budget."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import log

from paceline.core.rng import Purpose, key, uniforms
from paceline.core.tree import ROOT, Distribution
from paceline.drafting.growth import Growth, draw_counters
from paceline.drafting.prompt_lookup import PromptLookup, PromptLookupConfig
from paceline.drafting.stand.budget import Prospects
from paceline.drafting.stand.table import Context, Entry, NgramTable
from paceline.drafting.stand.walk import NO_DRAW, Walk

COPIES = PromptLookupConfig(length=12)


@dataclass(slots=True)
class Draft:
    """A tree on its way, and the class of each node's draw in the order they were made."""

    walk: Walk
    growth: Growth
    kinds: list[int]

    @classmethod
    def of(cls, walk: Walk) -> Draft:
        """The pending token alone."""
        return cls(walk, Growth([walk.text[-1]], [-1], [0], [None]), [NO_DRAW])

    def add(self, token: int, parent: int, kind: int) -> int:
        """Append a child; returns its index."""
        self.kinds.append(kind)
        return self.growth.add(token, parent)

    def due(self) -> bool:
        """Whether a sequence that would send nothing should try all the same."""
        if len(self.growth.token) > 1:
            return False
        self.walk.asked = True
        return self.walk.due

    def end(self) -> None:
        """The draft is done."""
        tree, order = self.growth.tree(self.walk.sampled)
        self.walk.tree, self.walk.kinds = tree, [self.kinds[node] for node in order]


@dataclass(slots=True)
class Spot:
    """A node that may get children: its draft, its place in the template, the last tokens before them, and its chance to be reached."""

    draft: Draft
    node: int
    place: int
    context: Context
    reach: float = 1.0


class Drawing:
    """Draws from a table.

    Args:
        table: of n-grams.
        copies: whether what followed the last tokens earlier is copied where the table knows nothing, or something that holds less often.
    """

    def __init__(self, table: NgramTable, copies: bool) -> None:
        self.table, self._copies = table, PromptLookup(COPIES) if copies else None

    def __call__(self, walks: Many[Walk], odds: Prospects | None) -> int:
        """Draw all trees together, level by level, so that rows are weighed against one another.

        Args:
            odds: what draws are worth; `None` draws all.

        Returns:
            Rows of the trees, roots included.
        """
        longest = self.table.lengths[0]
        for walk in walks:
            self.table.use(walk.space)
        drafts = [Draft.of(walk) for walk in walks]
        live = [
            Spot(draft, ROOT, 0, tuple(draft.walk.text[max(draft.walk.begin, len(draft.walk.text) - longest) :]))
            for draft in drafts
            if draft.walk.places is not None
        ]
        if self._copies is not None:
            live = [spot for spot in live if not self._copy(spot, odds, len(walks), self._copies)]
        while live:
            rows = sum(len(draft.growth.token) for draft in drafts)
            least = 0.0 if odds is None else odds.least(rows)
            live = [child for spot in live for child in self._deepen(spot, odds, least)]
        for draft in drafts:
            draft.end()
        return sum(len(draft.growth.token) for draft in drafts)

    def release(self, walk: Walk) -> None:
        """A sequence is over."""
        if self._copies is not None:
            self._copies.release(walk.sequence)

    def _copy(self, spot: Spot, odds: Prospects | None, rows: int, copies: PromptLookup) -> bool:
        """Draft for a sequence by copying from earlier in it, if that is known to hold more often than the table; whether it did."""
        draft, walk = spot.draft, spot.draft.walk
        found = self.table.longest(walk.space, spot.context)
        known = -1.0 if found is None else 1.0 if odds is None else odds.opening(*found)
        if known >= (1.0 if odds is None else odds.copying()):
            return False
        tokens, suffix = copies.lookup(walk.sequence, min(COPIES.length, walk.most, walk.depth))
        if not tokens or (odds is not None and known >= odds.rates[odds.copied(suffix, 0)]):
            return False
        least = 0.0 if odds is None else odds.least(rows)
        reach, node = 1.0, ROOT
        for depth, token in enumerate(tokens):
            kind = NO_DRAW if odds is None else odds.copied(suffix, depth)
            if odds is not None:
                reach *= odds.rates[kind]
                if reach < least and not draft.due():
                    break
            node = draft.add(token, node, kind)
            if token in walk.ends:
                break
        return True

    def _deepen(self, spot: Spot, odds: Prospects | None, least: float) -> list[Spot]:
        """Give a node its children.

        Returns:
            Those that may get some themselves.
        """
        draft, walk, places, deeper = spot.draft, spot.draft.walk, spot.draft.walk.places, list[Spot]()
        found = self.table.longest(walk.space, spot.context)
        if found is None or places is None:
            return deeper
        entry, length = found
        order, law, reach, left = self.order(draft, spot.node, entry), None, spot.reach, 1.0
        for rank in range(min(places.width[spot.place], len(entry.ids), walk.most + 1 - len(draft.growth.token))):
            kind, chance = NO_DRAW, 1.0
            if odds is not None:  # nothing here may depend on the value of the draw
                kind = odds.kind(length, rank, left if rank else entry.peak)
                chance = odds.rates[kind]
                if reach * chance < least and not draft.due():
                    break
            if walk.sampled and len(entry.ids) > 1:  # an only token is judged by the same chance as a chosen one
                law = Distribution(entry.shares, entry.ids)
            token = entry.ids[order[rank]]
            child = draft.add(token, spot.node, kind)
            below = places.below[places.first[spot.place] + rank]
            if below >= 0 and token not in walk.ends:
                context = (*spot.context, token)[-self.table.lengths[0] :]
                deeper.append(Spot(draft, child, below, context, reach * chance))
            reach *= 1.0 - chance
            left -= entry.shares[order[rank]]
        if law is not None:
            draft.growth.q[spot.node] = law
        return deeper

    def order(self, draft: Draft, node: int, entry: Entry) -> Many[int]:
        """The places of an entry's tokens as they are drawn without replacement; the likeliest first where nothing is drawn.

        Gumbel top-k as a race: the log of an exponential number is Gumbel noise, so whoever has the smallest number divided by its
        probability has the largest noisy log-probability.
        """
        size = len(entry.ids)
        if size == 1 or not draft.walk.sampled:
            return range(size)
        numbers = self.numbers(draft, node, size)
        times = [-log(number + 2.0**-54) / share for number, share in zip(numbers, entry.shares, strict=True)]  # the number is never zero
        return sorted(range(size), key=times.__getitem__)

    def numbers(self, draft: Draft, node: int, count: int) -> list[float]:
        """Random numbers for the candidates behind a node. None is used twice: not by other nodes, nor by other steps or sequences."""
        walk = draft.walk
        start = key(walk.sequence.seed, walk.step + draft.growth.depth[node], Purpose.DRAFT)
        return uniforms(start, draw_counters(walk.step, node, count))

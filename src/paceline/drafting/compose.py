"""Several drafters at once: their branches are merged into one tree, shared paths once."""

from __future__ import annotations

from collections.abc import Sequence as Many
from functools import reduce

from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import Drafter, DraftLimits


class Compose:
    """Merges proposals by path. The merged tree is judged as chosen candidates (sample-and-match), which is exact for any mixture.

    Args:
        parts: drafters; where the node limit binds, earlier ones come first.
    """

    def __init__(self, parts: Many[Drafter]) -> None:
        self.parts = list(parts)
        self.taps: TapRequest = reduce(TapRequest.__or__, (part.taps for part in parts), NO_TAPS)  # what any part wants
        self._trees: list[list[TokenTree]] = []

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        """Ask every part, then merge within the limits."""
        self._trees = [part.propose(sequences, limits) for part in self.parts]
        merged = []
        for at, limit in enumerate(limits):
            trees = [drafts[at] for drafts in self._trees]
            merged.append(merge(trees, limit.nodes))
        return merged

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        """Each part hears of the accepted path as far as its own tree follows it; one that taps logits, of the judged trees."""
        mine = {sequence.uid: at for at, sequence in enumerate(sequences)}
        for part, drafts in zip(self.parts, self._trees, strict=True):
            if part.taps.logits:
                part.observe(sequences, trees, verdicts, taps)
                continue
            if len(drafts) != len(mine):  # somebody was preempted after proposing; the rest is matched by its root
                drafts = [TokenTree.chain(tree.token[ROOT]) for tree in trees]
            views = [
                Verdict(follow(draft, [tree.token[node] for node in verdict.accepted]), verdict.tokens, verdict.logprobs)
                for draft, tree, verdict in zip(drafts, trees, verdicts, strict=True)
            ]
            part.observe(sequences, drafts, views, taps)

    def observe_prompt(self, sequence: Sequence, start: int, logits: Float[Tensor, "rows vocabulary"]) -> None:
        """For the parts whose taps ask for it."""
        for part in self.parts:
            if part.taps.prompt_logits:
                part.observe_prompt(sequence, start, logits)  # type: ignore[attr-defined]  # its taps ask for it

    def release(self, sequence: Sequence) -> None:
        for part in self.parts:
            part.release(sequence)

    def memory_bytes(self) -> int:
        """Sum over parts."""
        return sum(part.memory_bytes() for part in self.parts)


def merge(trees: Many[TokenTree], nodes: int) -> TokenTree:
    """Union of trees with one root by token path, at most `nodes` below the root; earlier trees first."""
    kept: dict[tuple[int, ...], None] = {}
    for tree in trees:
        for node in range(1, len(tree)):
            path = tuple(tree.token[step] for step in tree.path(node))
            if path not in kept and len(kept) < nodes:
                kept[path] = None
    return TokenTree.from_paths(trees[0].token[ROOT], kept)


def follow(tree: TokenTree, tokens: Many[int]) -> tuple[int, ...]:
    """Nodes of `tree` along `tokens` from the root, as far as they exist."""
    path: list[int] = []
    for token in tokens:
        below = tree.child(path[-1] if path else ROOT, token)
        if below is None:
            break
        path.append(below)
    return tuple(path)

"""Walks along decided tokens: greedy, and sample-and-match. A node's decision is what plain decoding would emit there.

Both rules descend to the child that carries the decided token and stop where there is none; the last decision is the correction or bonus.
With decisions that are samples of the numbers keyed by (seed, output position), sampled output equals plain sampling token for token,
whatever the tree; that is also the exact rule for chosen (not sampled) children: a child is accepted with its target probability.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from paceline.core.tree import ROOT, TokenTree
from paceline.verification.rows import TreeRows

Path = tuple[tuple[int, ...], tuple[int, ...]]  # accepted nodes; emitted tokens, one more


def follow(tree: TokenTree, decided: Many[int], start: int = 0) -> Path:
    """Walk a tree whose node i has the decision `decided[start + i]`."""
    accepted, tokens = [], []
    node: int | None = ROOT
    while node is not None:
        token = decided[start + node]
        tokens.append(token)
        node = tree.child(node, token)
        if node is not None:
            accepted.append(node)
    return tuple(accepted), tuple(tokens)


def matched(rows: TreeRows, members: Many[int]) -> list[Path]:
    """Sample-and-match (or greedy, where settings say so) for some trees of a step, in lockstep."""
    accepted: dict[int, list[int]] = {member: [] for member in members}
    tokens: dict[int, list[int]] = {member: [] for member in members}
    decided: dict[int, int] = {}  # by row
    live = dict.fromkeys(members, ROOT)
    while live:
        unknown = {member: node for member, node in live.items() if rows.starts[member] + node not in decided}
        if unknown:
            asked = rows.ahead(unknown)
            decided.update(zip(asked, rows.decide(asked), strict=True))
        reached: dict[int, int] = {}
        for member, node in live.items():
            token = decided[rows.starts[member] + node]
            tokens[member].append(token)
            below = rows.trees[member].child(node, token)
            if below is not None:
                accepted[member].append(below)
                reached[member] = below
        live = reached
    return [(tuple(accepted[member]), tuple(tokens[member])) for member in members]

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
    tokens = []
    reached = nodes = [ROOT]
    while nodes:
        token = decided[start + nodes[0]]
        tokens.append(token)
        reached, nodes = nodes, below(tree, nodes, token)
    return tuple(tree.path(reached[0])), tuple(tokens)


def below(tree: TokenTree, nodes: list[int], token: int) -> list[int]:
    """The children that carry `token`, of nodes that stand for the same text.

    There are several where branches stand side by side without sharing (Lookahead's parallel mode); the walk follows them all, since only
    what comes later tells which goes furthest.
    """
    first = nodes[0]
    if tree.is_chain:
        return [first + 1] if first + 1 < len(tree) and tree.token[first + 1] == token else []
    found = []
    for child in range(first + 1, len(tree)):
        parent = tree.parent[child]
        if parent < first and len(nodes) == 1:  # pre-order: the subtree ends here
            break
        if tree.token[child] == token and parent in nodes:
            found.append(child)
    return found


def matched(rows: TreeRows, members: Many[int]) -> list[Path]:
    """Sample-and-match (or greedy, where settings say so) for some trees of a step, in lockstep."""
    reached = {member: [ROOT] for member in members}
    tokens: dict[int, list[int]] = {member: [] for member in members}
    decided: dict[int, int] = {}  # by row
    live = dict(reached)
    while live:
        unknown = {member: nodes[0] for member, nodes in live.items() if rows.starts[member] + nodes[0] not in decided}
        if unknown:
            asked = rows.ahead(unknown)
            decided.update(zip(asked, rows.decide(asked), strict=True))
        for member, nodes in list(live.items()):
            token = decided[rows.starts[member] + nodes[0]]
            tokens[member].append(token)
            live[member] = below(rows.trees[member], nodes, token)
            if live[member]:
                reached[member] = live[member]
            else:
                del live[member]
    return [(tuple(rows.trees[member].path(reached[member][0])), tuple(tokens[member])) for member in members]

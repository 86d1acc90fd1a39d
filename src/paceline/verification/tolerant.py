"""Walking a draft that need not be the target's first choice everywhere: the tolerance rule of generalised aggressive decoding.

Approximate on purpose (Xia et al. 2022, arXiv 2203.16487, sec. 3.3): output may differ from plain decoding, and methods that ask for it are
labelled accordingly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.transform import argmax_ids
from paceline.core.tree import ROOT, TokenTree
from paceline.verification.rows import TreeRows
from paceline.verification.walk import Path


def tolerated(rows: TreeRows, member: int) -> Path:
    """The path of one greedy sequence whose tree carries a tolerance.

    From every node the walk goes on to the child whose token has the largest logit among those that the tolerance admits; where it admits
    none, or there are none, it ends with the target's first choice.
    """
    tree = rows.trees[member]
    places = range(rows.starts[member], rows.starts[member] + len(tree))
    logits = rows.processed(places)
    first = argmax_ids(logits)
    admitted = _admitted(tree, logits)
    below = tree.children()
    node, path, tokens = ROOT, [], []
    while candidates := [child for child in below[node] if child in admitted]:
        # Ranks are distinct unless two children carry one token; then the earlier child is followed, as a prefix tree would have one.
        node = min(candidates, key=lambda child: admitted[child])
        rows.checked(places[tree.parent[node]], first[tree.parent[node]])
        path.append(node)
        tokens.append(tree.token[node])
    return tuple(path), (*tokens, rows.checked(places[node], first[node]))


def _admitted(tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"]) -> dict[int, int]:
    """Rank, in its parent's row, of every child that the tree's tolerance admits; 0 is the target's first choice.

    Equal logits rank by id, as everywhere, so that rank 0 is what plain decoding emits.
    """
    tolerance = tree.tolerance
    if tolerance is None or len(tree) == 1:
        return {}
    parents = torch.tensor(tree.parent[1:], device=logits.device)
    tokens = torch.tensor(tree.token[1:], device=logits.device)
    above = logits[parents]
    own = above.gather(-1, tokens[:, None])
    ids = torch.arange(logits.shape[-1], device=logits.device)
    rank = ((above > own) | ((above == own) & (ids < tokens[:, None]))).sum(-1)
    gap = above.amax(-1) - own[:, 0]
    # The gap of the first choice is zero, so that beta = 1 leaves tau nothing to decide.
    admitted = (rank < tolerance.beta) & (gap <= tolerance.tau)
    return {node: rank for node, (keep, rank) in enumerate(zip(admitted.tolist(), rank.tolist(), strict=True), start=1) if keep}

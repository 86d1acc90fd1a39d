"""A drafter played against a next-token function instead of a network: every count is exact, and nothing is timed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from paceline.core.batch import Taps
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.lookahead import Lookahead, LookaheadConfig
from paceline.verification.walk import follow

UIDS = count()
VOCABULARY = 200


def cycle(tokens: list[int]) -> int:
    """A deterministic model whose next token depends on the last alone and repeats after 200 tokens."""
    return (tokens[-1] * 21 + 13) % VOCABULARY


def lookahead(eos: tuple[int, ...] = (), rows_cost: float = 0.0, **options: object) -> Lookahead:
    """A drafter with the paper's sizes that sends all it finds unless told otherwise; a further row costs `rows_cost` forwards."""
    config = LookaheadConfig(**({"budget": "fixed", "branch_length": 12, "max_query": 2} | options))  # type: ignore[arg-type]
    drafter = Lookahead.build(config, DraftContext(VOCABULARY, frozenset(eos), lambda rows: 1.0 + rows_cost * (rows - 1)))
    drafter.cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]  # seconds of a game are not those of a device
    return drafter


def play(
    drafter: Lookahead,
    prompt: list[int],
    tokens: int,
    target: Callable[[list[int]], int],
    tenant: str = "",
    finish: bool = True,
) -> tuple[Sequence, list[TokenTree]]:
    """Decode greedily; returns the sequence and the tree of every forward."""
    sequence = Sequence(next(UIDS), Request(tuple(prompt), max_tokens=tokens, tenant=tenant))
    trees = []
    while sequence.remaining > 0:
        depth = sequence.remaining - 1
        (tree,) = drafter.propose([sequence], [DraftLimits(64 if depth else 0, depth)])
        decided = [target([*sequence.tokens, *(tree.token[step] for step in tree.path(node))]) for node in range(len(tree))]
        accepted, emitted = follow(tree, decided)
        sequence.tokens.extend(emitted)
        drafter.observe([sequence], [tree], [Verdict(accepted, emitted)], Taps())
        trees.append(tree)
    if finish:
        sequence.finish_reason = FinishReason.LENGTH
        drafter.release(sequence)
    return sequence, trees


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every root-to-node path as tokens."""
    return {tuple(tree.token[step] for step in tree.path(node)) for node in range(1, len(tree))}


def drafted(
    drafter: Lookahead, tokens: list[int], nodes: int = 64, depth: int = 64, tenant: str = "", prompt: int | None = None
) -> TokenTree:
    """The draft of a request that holds `tokens`, the first `prompt` of them its prompt (all by default)."""
    sequence = Sequence(next(UIDS), Request(tuple(tokens[:prompt]), max_tokens=1000, tenant=tenant), tokens=list(tokens))
    return drafter.propose([sequence], [DraftLimits(nodes, depth)])[0]

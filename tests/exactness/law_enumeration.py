"""Exact laws without Monte Carlo: every outcome of a drafter's draws and of the verifier's decisions, with its probability.

The verifier under test is the real one. Its random numbers are scripted: at each acceptance test both outcomes are explored, weighted
with the probability that the rule offered, and where it would draw a last token, the distribution it draws from is taken whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

import pytest
import torch

from paceline.core.request import Request, Sequence
from paceline.core.rng import Purpose
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.verification import rejection
from paceline.verification.rejection import Odds, Opening
from paceline.verification.rows import TreeRows
from paceline.verification.verifier import Verifier

Law = dict[tuple[int, ...], float]
Rows = Callable[[tuple[int, ...]], torch.Tensor]  # history -> next-token law
Trees = Iterator[tuple[TokenTree, float]]

PROMPT = (0, 1)


def second_order(vocabulary: int, seed: int) -> Rows:
    """A random source whose next-token law depends on the last two tokens."""
    table = torch.rand(vocabulary, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2 + 0.01
    table /= table.sum(-1, keepdim=True)
    return lambda history: table[history[-2], history[-1]]


def histories(tree: TokenTree) -> list[tuple[int, ...]]:
    return [(*PROMPT, *(tree.token[below] for below in tree.path(node))) for node in range(len(tree))]


def verdict_law(tree: TokenTree, p: Rows, verifier: Verifier) -> Law:
    """Law of the tokens emitted for one tree."""
    sequence = Sequence(0, Request(ids=PROMPT, sampling=Sampling(temperature=1.0)))
    logits = torch.stack([p(history) for history in histories(tree)]).log()
    law: Law = defaultdict(float)
    scripts: list[list[bool]] = [[]]
    while scripts:
        run = _Run(scripts.pop(), scripts)
        with pytest.MonkeyPatch.context() as patch:
            run.install(patch)
            (verdict,) = verifier.judge([sequence], [tree], logits)
        assert run.last is not None
        for token, mass in enumerate((run.last / run.last.sum()).tolist()):
            law[(*verdict.tokens[:-1], token)] += run.weight * mass
    return law


class _Run:
    """One scripted pass through the verifier; outcomes it leaves out are added to the scripts still to run."""

    def __init__(self, script: list[bool], todo: list[list[bool]]) -> None:
        self.script, self.todo = script, todo
        self.taken: list[bool] = []
        self.offered = 0.0
        self.weight = 1.0
        self.last: torch.Tensor | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def watch(rule: type[Odds] | type[Opening]) -> None:
            offer = rule.offer

            def spy(odds: Any, tokens: list[int]) -> list[float]:
                (ratio,) = offer(odds, tokens)
                self.offered = min(1.0, ratio)
                return [ratio]

            patch.setattr(rule, "offer", spy)

        watch(Opening)
        watch(Odds)
        patch.setattr(TreeRows, "uniform", lambda rows, row, purpose, draw=0: self.number(purpose))
        patch.setattr(rejection, "draw", self.capture)

    def number(self, purpose: Purpose) -> float:
        if purpose is not Purpose.ACCEPT:
            return 0.0
        step = len(self.taken)
        if step < len(self.script):
            accept = self.script[step]
        else:
            accept = self.offered > 0
            if 0 < self.offered < 1:
                self.todo.append([*self.taken, False])
        self.taken.append(accept)
        self.weight *= self.offered if accept else 1 - self.offered
        return 0.0 if accept else 1 - 2.0**-53

    def capture(self, probs: torch.Tensor, numbers: list[float]) -> list[int]:
        assert len(probs) == len(numbers) == 1
        self.last = probs[0]
        return [0]


def first_two(trees: Trees, p: Rows, verifier: Verifier) -> Law:
    """Law of the first two output tokens: after a verdict of one token, the second one is drawn from the target."""
    law: Law = defaultdict(float)
    for tree, probability in trees:
        for tokens, weight in verdict_law(tree, p, verifier).items():
            if len(tokens) >= 2:
                law[tokens[:2]] += probability * weight
                continue
            for second, mass in enumerate(p((*PROMPT, *tokens)).tolist()):
                law[(*tokens, second)] += probability * weight * mass
    return law


def distance_to_plain(law: Law, p: Rows, vocabulary: int) -> float:
    """Largest difference to plain sampling over all pairs of tokens."""
    pairs = [(first, second) for first in range(vocabulary) for second in range(vocabulary)]
    assert set(law) <= set(pairs)
    return max(abs(law.get((a, b), 0.0) - (p(PROMPT)[a] * p((*PROMPT, a))[b]).item()) for a, b in pairs)


class _Growing:
    """A tree under construction: nodes in the order they were drawn."""

    def __init__(self) -> None:
        self.token, self.parent = [PROMPT[-1]], [-1]
        self.draft: dict[int, torch.Tensor] = {}  # what a node's children are drawn from, before any draw

    def copy(self) -> _Growing:
        other = _Growing()
        other.token, other.parent, other.draft = self.token.copy(), self.parent.copy(), self.draft.copy()
        return other

    def history(self, node: int) -> tuple[int, ...]:
        tokens: list[int] = []
        while node:
            tokens.append(self.token[node])
            node = self.parent[node]
        return (*PROMPT, *reversed(tokens))

    def finished(self, replacement: bool, sparse: bool, order: Callable[[torch.Tensor, int], float] | None = None) -> TokenTree:
        """In pre-order, siblings as drawn (or, wrongly, as `order` says)."""
        below: dict[int, list[int]] = defaultdict(list)
        for node, parent in enumerate(self.parent[1:], start=1):
            below[parent].append(node)
        token, parent, q = [], [], {}
        stack = [(0, -1)]
        while stack:
            node, above = stack.pop()
            place = len(token)
            token.append(self.token[node])
            parent.append(above)
            children = below[node]
            if order is not None:
                children = sorted(children, key=lambda child: order(self.draft[node], self.token[child]))
            if children:
                law = self.draft[node]
                ids = law.nonzero().flatten().flip(0)
                q[place] = Distribution(law[ids].clone(), ids) if sparse else Distribution(law)
            stack.extend((child, place) for child in reversed(children))
        return TokenTree(tuple(token), tuple(parent), Proposal(q, replacement))


def without(law: torch.Tensor, token: int) -> torch.Tensor:
    """Renormalised after a draw; all zero when nothing is left."""
    rest = law.clone()
    rest[token] = 0
    return rest / rest.sum() if rest.sum() > 1e-15 else torch.zeros_like(rest)


def best_first(q: Rows, nodes: int, sparse: bool = False, order: Callable[[torch.Tensor, int], float] | None = None) -> Trees:
    """Every tree that DySpec's fixed-budget growth can draw (arXiv 2410.11744, Algorithm 1), with its probability."""
    start = _Growing()
    start.draft[0] = q(PROMPT)
    yield from _grow(start, [(-1.0, 0, 0, start.draft[0])], nodes, 1.0, q, sparse, order)


def _grow(
    tree: _Growing,
    heap: list[tuple[float, int, int, torch.Tensor]],
    left: int,
    probability: float,
    q: Rows,
    sparse: bool,
    order: Callable[[torch.Tensor, int], float] | None,
) -> Trees:
    if left == 0 or not heap:
        yield tree.finished(False, sparse, order), probability
        return
    heap = heap.copy()
    value, _, node, law = heappop(heap)
    for token, mass in enumerate(law.tolist()):
        if mass == 0:
            continue
        grown, requests = tree.copy(), heap.copy()
        child = len(grown.token)
        grown.token.append(token)
        grown.parent.append(node)
        grown.draft[child] = q(grown.history(child))
        rest = without(law, token)
        if rest.sum() > 0:
            heappush(requests, (value * (1 - mass), 2 * child, node, rest))
        heappush(requests, (value * mass, 2 * child + 1, child, grown.draft[child]))
        yield from _grow(grown, requests, left - 1, probability * mass, q, sparse, order)


def fixed_shape(q: Rows, widths: tuple[int, ...], replacement: bool) -> Trees:
    """Every tree with `widths[d]` children below each node of depth d, drawn with or without replacement (SpecInfer, Sequoia)."""
    start = _Growing()
    yield from _fill(start, [(0, 0, 0)], widths, replacement, 1.0, q, {})


def _fill(
    tree: _Growing,
    todo: list[tuple[int, int, int]],
    widths: tuple[int, ...],
    replacement: bool,
    probability: float,
    q: Rows,
    residual: dict[int, torch.Tensor],
) -> Trees:
    if not todo:
        yield tree.finished(replacement, sparse=False), probability
        return
    node, depth, drawn = todo[0]
    if depth == len(widths) or drawn == widths[depth]:
        yield from _fill(tree, todo[1:], widths, replacement, probability, q, residual)
        return
    law = residual.get(node, q(tree.history(node)))
    if law.sum() == 0:
        yield from _fill(tree, todo[1:], widths, replacement, probability, q, residual)
        return
    for token, mass in enumerate(law.tolist()):
        if mass == 0:
            continue
        grown = tree.copy()
        child = len(grown.token)
        grown.draft.setdefault(node, q(grown.history(node)))
        grown.token.append(token)
        grown.parent.append(node)
        after = residual if replacement else {**residual, node: without(law, token)}
        todo_after = [(node, depth, drawn + 1), *todo[1:], (child, depth + 1, 0)]
        yield from _fill(grown, todo_after, widths, replacement, probability * mass, q, after)

"""Toy targets and sequences for tests of verification: logits as a pure function of the whole history."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from hypothesis import strategies as st

from paceline.core.request import Request, Sequence
from paceline.core.rng import key
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.verification.verifier import Verifier

VOCABULARY = 12


def history_logits(history: Many[int], vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a model would say after this history; every token of it matters. Coarse values make ties common."""
    generator = torch.Generator().manual_seed(key(0, *history) >> 1)
    return torch.randint(-4, 5, (vocabulary,), generator=generator).to(dtype) / 2


def tree_logits(sequence: Sequence, tree: TokenTree, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One row per node, each with the history that leads to it."""
    histories = [[*sequence.tokens, *(tree.token[below] for below in tree.path(node))] for node in range(len(tree))]
    return torch.stack([history_logits(history, dtype=dtype) for history in histories])


def sequence_of(prompt: Many[int], sampling: Sampling, sample: int = 0) -> Sequence:
    return Sequence(0, Request(ids=tuple(prompt), sampling=sampling), sample=sample)


def plain_tokens(prompt: Many[int], sampling: Sampling, count: int, sample: int = 0) -> list[int]:
    """Plain decoding: every draft is empty."""
    verifier, sequence = Verifier(), sequence_of(prompt, sampling, sample)
    for _ in range(count):
        tree = TokenTree.chain(sequence.tokens[-1])
        (verdict,) = verifier.judge([sequence], [tree], tree_logits(sequence, tree))
        sequence.tokens.extend(verdict.tokens)
    return sequence.output


def with_random_proposal(tree: TokenTree, seed: int = 0) -> TokenTree:
    """The same tree, as if its children had been drawn from random distributions."""
    generator = torch.Generator().manual_seed(seed)
    parents = {parent for parent in tree.parent if parent >= 0}
    q = {node: Distribution(torch.rand(VOCABULARY, generator=generator).softmax(-1)) for node in sorted(parents)}
    return TokenTree(tree.token, tree.parent, Proposal(q))


tokens = st.integers(0, VOCABULARY - 1)
prompts = st.lists(tokens, min_size=1, max_size=8)
drafts = st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=5)


@st.composite
def samplings(draw: st.DrawFn, greedy: bool | None = None) -> Sampling:
    """Any mixture of options, off or on."""
    temperature = draw(st.sampled_from([0.0, 0.7, 1.0, 1.5]) if greedy is None else st.just(0.0) if greedy else st.sampled_from([0.7, 1.3]))
    return Sampling(
        temperature=temperature,
        top_k=draw(st.sampled_from([0, 0, 1, 3, 50])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.5, 0.9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.1])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.6, -0.4])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3])),
        no_repeat_ngram=draw(st.sampled_from([0, 0, 1, 2, 3])),
        logit_bias=draw(st.dictionaries(tokens, st.sampled_from([-2.0, 1.5, -torch.inf]), max_size=3)),
        seed=draw(st.integers(0, 1000)),
    )

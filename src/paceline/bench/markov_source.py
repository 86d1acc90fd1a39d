"""A target without a network: a random second-order source, run through real drafters and the real verifier.

Its laws are known exactly and cost nothing, so that hundreds of thousands of tokens can be tested against them and drafters can be
compared by tokens per step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.laws import ChiSquare, chi_square
from paceline.core.batch import Taps
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import TokenTree
from paceline.drafting.base import Drafter, DraftLimits
from paceline.verification.verifier import Verifier


@dataclass(frozen=True, slots=True)
class MarkovSource:
    """Logits of the next token by the last two.

    Args:
        logits: float64, `-inf` outside the support.
    """

    logits: Float[Tensor, "vocabulary vocabulary vocabulary"]

    @classmethod
    def random(cls, vocabulary: int, support: int, spread: float = 1.0, seed: int = 0) -> MarkovSource:
        """Every context allows `support` tokens, with logits of a standard deviation of `spread`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (vocabulary, vocabulary, vocabulary)
        allowed = torch.rand(shape, generator=generator).argsort(-1) < support
        logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        return cls(logits.masked_fill(~allowed, -torch.inf))

    @property
    def vocabulary(self) -> int:
        return len(self.logits)

    def rows(self, sequences: Many[Sequence], trees: Many[TokenTree]) -> Float[Tensor, "nodes vocabulary"]:
        """Logits at every node of every tree."""
        before: list[int] = []
        last: list[int] = []
        for sequence, tree in zip(sequences, trees, strict=True):
            for node, parent in enumerate(tree.parent):
                before.append(sequence.tokens[-2] if node == 0 else tree.token[parent])
                last.append(tree.token[node])
        return self.logits[torch.tensor(before), torch.tensor(last)]

    def run(self, drafter: Drafter, sequences: Many[Sequence], nodes: int = 80, verifier: Verifier | None = None) -> int:
        """Decode sequences together to their `max_tokens`, as the engine's loop does.

        Args:
            drafter: any; it is told of the end of every sequence.
            sequences: with prompts of at least two tokens.
            nodes: most draft nodes per step.

        Returns:
            Steps, each counted once per sequence that took part.
        """
        judge = verifier or Verifier()
        steps = 0
        while live := [sequence for sequence in sequences if not sequence.finished]:
            limits = [DraftLimits(nodes, sequence.remaining - 1) for sequence in live]
            trees = drafter.propose(live, limits)
            logits = self.rows(live, trees)
            verdicts = judge.judge(live, trees, logits)
            for sequence, tree, verdict in zip(live, trees, verdicts, strict=True):
                sequence.tokens.extend(verdict.tokens)
                sequence.stats.record(max(tree.depth), len(tree) - 1, len(verdict.accepted))
                if sequence.remaining <= 0:
                    sequence.finish_reason = FinishReason.LENGTH
            drafter.observe(live, trees, verdicts, Taps(logits=logits))
            steps += len(live)
            for sequence in live:
                if sequence.finished:
                    drafter.release(sequence)
        return steps

    def test(self, sequences: Many[Sequence]) -> ChiSquare:
        """Three-gram counts of all outputs against the law of their sampling settings: independent draws, given the two tokens before."""
        counts: dict[tuple[int, int], Counter[tuple[int, ...]]] = {}
        for sequence in sequences:
            for at in range(sequence.prompt_length, len(sequence.tokens)):
                context = (sequence.tokens[at - 2], sequence.tokens[at - 1])
                counts.setdefault(context, Counter())[(sequence.tokens[at],)] += 1
        statistic, freedom, cells, forbidden = 0.0, 0, 0, False
        for context, found in counts.items():
            law = target_distribution(self.logits[context][None], sequences[0].request.sampling)[0].tolist()
            part = chi_square(found, {(token,): mass for token, mass in enumerate(law) if mass > 0})
            forbidden |= any(law[token] <= 0 for (token,) in found)
            if part.cells > 1:
                statistic, freedom, cells = statistic + part.statistic, freedom + part.freedom, cells + part.cells
        tail = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64))
        return ChiSquare(statistic, freedom, 0.0 if forbidden else float(tail), cells)


def trajectories(count: int, tokens: int, sampling: Sampling, first_seed: int = 0, prompt: tuple[int, ...] = (0, 1)) -> list[Sequence]:
    """Sequences of one prompt with seeds of their own."""
    made = []
    for index in range(count):
        request = Request(prompt, _seeded(sampling, first_seed + index), max_tokens=tokens)
        made.append(Sequence(first_seed + index, request))
    return made


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p, seed=seed)

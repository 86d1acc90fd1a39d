"""Listening in on a running loop: what the target's logits were behind every token that was decided."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from paceline.bench.audit.rig import Prompts, decode
from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.engine.llm import LLM
from paceline.verification.verifier import Verifier

Place = tuple[tuple[int, ...], int]  # a prompt, and an index in its output
T = TypeVar("T")


class Listener(Verifier, Generic[T]):
    """Stands between the loop and its verifier and keeps something of the logits behind every decision.

    Args:
        inner: who judges.
        keep: what to keep of a row of logits.
    """

    def __init__(self, inner: Verifier, keep: Callable[[Float[Tensor, " vocabulary"]], T]) -> None:
        self.inner, self.keep = inner, keep
        self.heard: dict[Place, T] = {}
        self.chains_only = True

    def judge(self, sequences: Many[Sequence], trees: Many[TokenTree], logits: Float[Tensor, "nodes vocabulary"]) -> list[Verdict]:
        """As the inner verifier; the rows of the root and of every accepted node are kept."""
        verdicts = self.inner.judge(sequences, trees, logits)
        start = 0
        for sequence, tree, verdict in zip(sequences, trees, verdicts, strict=True):
            self.chains_only &= tree.is_chain
            done = len(sequence.tokens) - sequence.prompt_length
            for node in (ROOT, *verdict.accepted):
                self.heard[sequence.request.prompt, done + tree.depth[node]] = self.keep(logits[start + node])
            start += len(tree)
        return verdicts


def listen(
    llm: LLM, prompts: Prompts, max_tokens: int, keep: Callable[[Float[Tensor, " vocabulary"]], T], *, batched: bool
) -> tuple[Listener[T], list[list[int]]]:
    """Decode the prompts greedily with a listener in place; returns it and the outputs."""
    listener = Listener(llm.engine.verifier, keep)
    llm.engine.verifier = listener
    try:
        outputs = decode(llm, prompts, Sampling(), max_tokens, batched=batched)
    finally:
        llm.engine.verifier = listener.inner
    return listener, [output.token_ids for output in outputs]

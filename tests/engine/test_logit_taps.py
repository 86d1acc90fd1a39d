"""Logits of the judged trees, handed to drafters that ask for them: the right rows, processed as the verifier processes them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import pytest
import torch

from paceline.bench.audit.rig import Rig
from paceline.bench.audit.toy import toy_decoder
from paceline.core.batch import NO_TAPS, TapRequest, Taps
from paceline.core.request import Sequence
from paceline.core.sampling import Sampling
from paceline.core.tree import ROOT, TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import Drafter, DraftLimits
from paceline.drafting.compose import Compose
from paceline.drafting.none import NoDraft
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.verification.verifier import Verifier

PROMPTS = [(1, 2, 3), (4,), (5, 0, 5, 0, 5, 0, 1)]


@dataclass
class Listener:
    """Drafts a fixed small tree and writes down what it hears."""

    taps: TapRequest = field(default_factory=lambda: TapRequest(logits=True))
    shift: int = 0
    heard: list[tuple[list[Sequence], list[TokenTree], list[Verdict], Taps]] = field(default_factory=list)

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        trees = []
        for sequence, limit in zip(sequences, limits, strict=True):
            last = sequence.tokens[-1]
            token = (last, (last + 1 + self.shift) % 12, (last + 2) % 12, (last + 3 + self.shift) % 12)
            trees.append(TokenTree(token, (-1, 0, 1, 0)) if limit.nodes >= 3 and limit.depth >= 2 else TokenTree.chain(last))
        return trees

    def observe(self, sequences: Many[Sequence], trees: Many[TokenTree], verdicts: Many[Verdict], taps: Taps) -> None:
        self.heard.append((list(sequences), list(trees), list(verdicts), taps))

    def release(self, sequence: Sequence) -> None: ...

    def memory_bytes(self) -> int:
        return 0


@pytest.fixture(scope="module")
def target() -> LLM:
    return load(toy_decoder(12, seed=2), "none", device="cpu", pack=False, kv_tokens=4)


def run(target: LLM, drafter: Drafter, sampling: Sampling) -> list[list[int]]:
    llm = Rig(target).wired(drafter, PROMPTS, 12)
    return [output.token_ids for output in llm.generate([list(prompt) for prompt in PROMPTS], sampling, 12, ignore_eos=True)]


SETTINGS = [Sampling(), Sampling(repetition_penalty=1.4, frequency_penalty=0.3), Sampling(logit_bias={3: 2.0}, no_repeat_ngram=2)]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_rows_belong_to_the_nodes_and_are_processed(target: LLM, sampling: Sampling) -> None:
    """At a greedy target the largest logit of every judged node on the path is the token that was emitted there."""
    drafter = Listener()
    outputs = run(target, drafter, sampling)
    assert outputs == run(target, NoDraft(), sampling)
    judged = 0
    for _, trees, verdicts, taps in drafter.heard:
        assert taps.logits is not None
        assert len(taps.logits) == sum(map(len, trees))
        start = 0
        for tree, verdict in zip(trees, verdicts, strict=True):
            best = taps.logits[start : start + len(tree)].argmax(-1).tolist()
            assert [best[node] for node in (ROOT, *verdict.accepted)] == list(verdict.tokens)
            start += len(tree)
            judged += len(verdict.tokens)
    assert judged >= sum(map(len, outputs))


def test_raw_logits_would_be_noticed(target: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without processing, some largest logit is not what was emitted."""
    monkeypatch.setattr(Verifier, "processed", lambda self, sequences, trees, logits: logits)
    with pytest.raises(AssertionError):
        test_rows_belong_to_the_nodes_and_are_processed(target, SETTINGS[1])


def test_nothing_is_handed_over_unasked(target: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verifier, "processed", lambda self, *given: pytest.fail("nobody asked"))
    drafter = Listener(taps=NO_TAPS)
    run(target, drafter, SETTINGS[1])
    assert all(taps.logits is None for *_, taps in drafter.heard)
    assert (TapRequest(logits=True) | NO_TAPS).logits
    assert not (NO_TAPS | NO_TAPS).logits


def test_composed_drafters_hear_of_the_trees_the_rows_belong_to(target: LLM) -> None:
    listening, other = Listener(), Listener(taps=NO_TAPS, shift=4)
    parts = Compose([listening, other])
    assert parts.taps.logits
    assert run(target, parts, Sampling()) == run(target, NoDraft(), Sampling())
    sizes = set()
    for (_, merged, verdicts, taps), (_, own, _, _) in zip(listening.heard, other.heard, strict=True):
        assert taps.logits is not None
        assert len(taps.logits) == sum(map(len, merged))
        assert torch.isfinite(taps.logits).all()
        assert all(verdict.accepted == () or max(verdict.accepted) < len(tree) for tree, verdict in zip(merged, verdicts, strict=True))
        sizes.update((len(tree), len(mine)) for tree, mine in zip(merged, own, strict=True))
    assert (7, 4) in sizes  # merged trees for one, its own for the other

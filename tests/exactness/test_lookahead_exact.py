"""Lookahead changes no token and no law: identity in float64 for every mode, logits of every node, chi-square of sample-and-match."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from law_enumeration import second_order
from toy_engines import VOCABULARY, ids, make, prompts, toy_llm

from paceline.bench.audit.margins import PlainPath
from paceline.core.batch import Taps
from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.lookahead import Lookahead, LookaheadConfig
from paceline.engine.llm import LLM
from paceline.verification.verifier import Verifier

MODES = [f"{shape}_{source}" for shape in ("hier", "par", "one") for source in ("mix", "input", "output")]
SETTINGS = {
    "greedy": Sampling(),
    "repetition": Sampling(repetition_penalty=1.3),
    "ngram": Sampling(no_repeat_ngram=3),
    "sampled": Sampling(temperature=0.8, seed=5),
}
ASKED = prompts(6)  # ids 0 and 7, the end of sequence here, occur inside
EOS = (7,)


@pytest.fixture(scope="module")
def target() -> LLM:
    return toy_llm(1, eos=EOS)


@cache
def plain(name: str, ignore_eos: bool) -> list[list[int]]:
    return ids(make(toy_llm(1, eos=EOS), toy_llm(2, layers=1), "none", coupled=True), ASKED, SETTINGS[name], ignore_eos=ignore_eos)


def accepted(llm: LLM, sampling: Sampling, ignore_eos: bool, expected: list[list[int]]) -> int:
    """Decode everything and check it; returns how many drafted tokens were accepted."""
    outputs = llm.generate(ASKED, sampling, 20, ignore_eos=ignore_eos)
    assert [output.token_ids for output in outputs] == expected
    return sum(output.stats.accepted for output in outputs)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_plain_decoding_cold_and_warm(target: LLM, mode: str, name: str) -> None:
    llm = make(target, target, f"lookahead:mode={mode},budget=fixed,branch_length=5,decoding_length=48", coupled=True)
    cold = accepted(llm, SETTINGS[name], True, plain(name, True))
    warm = accepted(llm, SETTINGS[name], True, plain(name, True))
    if not mode.endswith("input"):
        assert warm > cold
    accepted(llm, SETTINGS[name], False, plain(name, False))


@pytest.mark.parametrize("method", ["lookahead:store=table,branch_length=4,budget=fixed", "lookahead", "lookahead+prompt-lookup"])
@pytest.mark.parametrize("name", SETTINGS)
def test_table_measured_budget_and_composition_equal_plain_decoding(target: LLM, method: str, name: str) -> None:
    llm = make(target, target, method, coupled=True)
    for _ in range(2):
        accepted(llm, SETTINGS[name], True, plain(name, True))


@pytest.mark.parametrize("mode", ["hier_mix", "par_mix"])
def test_logits_of_every_node_are_those_of_a_plain_forward(target: LLM, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, positions and what a commit leaves in memory, step after step."""
    llm = make(target, target, f"lookahead:mode={mode},budget=fixed,branch_length=4,decoding_length=24")
    llm.generate(ASKED[:3], max_tokens=12, ignore_eos=True)
    path = PlainPath(target.runner.decoder, None)
    judge = llm.engine.verifier.judge
    worst, wide = 0.0, 0

    def listen(sequences, trees, logits):  # type: ignore[no-untyped-def]
        nonlocal worst, wide
        start = 0
        for sequence, tree in zip(sequences, trees, strict=True):
            wide += not tree.is_chain
            for node in range(len(tree)):
                history = [*sequence.tokens, *(tree.token[step] for step in tree.path(node))]
                worst = max(worst, float((path.all_logits(history)[-1] - logits[start + node]).abs().max()))
            start += len(tree)
        return judge(sequences, trees, logits)

    monkeypatch.setattr(llm.engine.verifier, "judge", listen)
    llm.generate(ASKED[:3], max_tokens=12, ignore_eos=True)
    assert wide > 3
    assert worst < 1e-10


V = 8
P = second_order(V, seed=4)
RUNS, TOKENS = 15_000, 3
START = (0, 1)


def outcomes(faulty: bool) -> Counter[tuple[int, ...]]:
    """The first three tokens of many requests, drafted from what all earlier requests answered."""
    config = LookaheadConfig(budget="fixed", branch_length=2, decoding_length=6, max_output_node=40, squeeze_after=1)
    drafter = Lookahead.build(config, DraftContext(V, frozenset(), lambda rows: 1.0))
    verifier = Verifier()
    laws = {(a, b): P((a, b)).log() for a in range(V) for b in range(V)}
    seen: Counter[tuple[int, ...]] = Counter()
    drafted = 0
    for first in range(0, RUNS, 500):
        live = [Sequence(seed, Request(START, Sampling(temperature=1.0, seed=seed), TOKENS)) for seed in range(first, first + 500)]
        everyone = live
        while live:
            trees = [drafter.propose([one], [DraftLimits(5, max(0, one.remaining - 1))])[0] for one in live]
            rows = []
            for one, tree in zip(live, trees, strict=True):
                drafted += len(tree) - 1
                for node in range(len(tree)):
                    history = [*one.tokens, *(tree.token[step] for step in tree.path(node))]
                    rows.append(laws[history[-2], history[-1]])
            verdicts = verifier.judge(live, trees, torch.stack(rows))
            for one, tree, verdict in zip(live, trees, verdicts, strict=True):
                tokens = verdict.tokens
                if faulty and len(tree) > 1 and one.uid % 8 == 0:
                    tokens = (tree.token[1],)  # takes the draft's word for it now and then
                one.tokens.extend(tokens)
                drafter.observe([one], [tree], [Verdict(verdict.accepted, tokens)], Taps())
                if not one.remaining:
                    one.finish_reason = FinishReason.LENGTH
                    drafter.release(one)
            live = [one for one in live if one.remaining]
        seen.update(tuple(one.output[:TOKENS]) for one in everyone)
    assert drafted > RUNS
    return seen


def deviation(seen: Counter[tuple[int, ...]]) -> float:
    """Chi-square of all triples against plain sampling, in standard deviations above its mean; rare triples are pooled."""
    expected = {(a, b, c): RUNS * float(P(START)[a] * P((1, a))[b] * P((a, b))[c]) for a in range(V) for b in range(V) for c in range(V)}
    common = [triple for triple, mean in expected.items() if mean >= 5]
    cells = [(seen[triple], expected[triple]) for triple in common]
    cells.append((RUNS - sum(count for count, _ in cells), RUNS - sum(mean for _, mean in cells)))
    freedom = len(cells) - 1
    return (sum((count - mean) ** 2 / mean for count, mean in cells) - freedom) / (2 * freedom) ** 0.5


def test_sampled_output_keeps_the_law_of_the_target() -> None:
    assert deviation(outcomes(faulty=False)) < 4


def test_the_law_test_notices_a_rule_that_trusts_the_draft() -> None:
    """Negative control."""
    assert deviation(outcomes(faulty=True)) > 8


def test_the_vocabulary_of_these_tests_holds_zero_and_the_end_of_sequence() -> None:
    assert any(0 in prompt[1:-1] for prompt in ASKED)
    assert any(EOS[0] in prompt[1:-1] for prompt in ASKED)
    assert EOS[0] < VOCABULARY

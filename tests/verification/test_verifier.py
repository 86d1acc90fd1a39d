"""The judge as the engine calls it: batches, devices, dtypes, broken input, and what must not leak between sequences."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import VOCABULARY, drafts, prompts, samplings, sequence_of, tree_logits, with_random_proposal

from paceline.core.errors import PacelineError, UsageError
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.verification import rows
from paceline.verification.verifier import Verifier

SAMPLED = Sampling(temperature=1.0)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(samplings(), prompts, drafts, st.booleans()), min_size=1, max_size=5),
    st.sampled_from(["auto", "match", "rejection"]),
)
def test_a_batch_is_judged_like_its_members(members: list[tuple[Sampling, list[int], list[list[int]], bool]], rule: str) -> None:
    """Greedy, sampled and penalised sequences mixed; level by level or all at once; nothing depends on the others."""
    sequences = [sequence_of(prompt, sampling) for sampling, prompt, _, _ in members]
    trees = [TokenTree.from_paths(prompt[-1], branches) for _, prompt, branches, _ in members]
    trees = [
        with_random_proposal(tree, seed) if member[3] else tree for seed, (tree, member) in enumerate(zip(trees, members, strict=True))
    ]
    logits = [tree_logits(sequence, tree) for sequence, tree in zip(sequences, trees, strict=True)]
    alone = [Verifier(rule).judge([s], [t], x)[0] for s, t, x in zip(sequences, trees, logits, strict=True)]  # type: ignore[arg-type]
    together = torch.cat(logits)
    kept = together.clone()
    with pytest.MonkeyPatch.context() as patch:
        for all_nodes in (False, True):
            patch.setattr(rows, "judges_all_nodes", lambda device, choice=all_nodes: choice)
            assert Verifier(rule).judge(sequences, trees, together) == alone  # type: ignore[arg-type]
    assert torch.equal(together, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_greedy_ties_break_to_the_lowest_id(dtype: torch.dtype) -> None:
    sequence = sequence_of([4], Sampling())
    tree = TokenTree.chain(4, [0, 2])
    logits = torch.tensor([[1, 0, 1, 1], [0, 0, 3, 3], [0, 5, 5, 5]]).to(dtype)
    (verdict,) = Verifier().judge([sequence], [tree], logits)
    assert verdict.tokens == (0, 2, 1)
    assert verdict.accepted == (1, 2)
    assert verdict.pending == 1
    penalised = sequence_of([4], Sampling(logit_bias={1: 0.0}))  # the general path
    assert Verifier().judge([penalised], [tree], logits) == [verdict]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(logit_bias={1: 1.0}), SAMPLED, Sampling(temperature=1.0, top_p=0.5, top_k=3)])
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_nan_logits_are_a_clear_error(sampling: Sampling, rule: str) -> None:
    sequence = sequence_of([4, 5], sampling)
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 3] = torch.nan
    for tree in (TokenTree.chain(5, [1]), TokenTree((5, 1), (-1, 0), Proposal({0: Distribution(torch.ones(VOCABULARY) / VOCABULARY)}))):
        with pytest.raises(PacelineError, match=r"not finite at position 2 of sequence 0.*float32"):
            Verifier(rule).judge([sequence], [tree], logits)  # type: ignore[arg-type]


def test_a_proposal_that_contradicts_its_tree_is_an_error() -> None:
    q = Distribution(torch.tensor([0.5, 0.5]), torch.tensor([1, 2]))
    sequence = sequence_of([4], SAMPLED)
    tree = TokenTree((4, 3), (-1, 0), Proposal({0: q}))
    with pytest.raises(PacelineError, match=r"token 3 .* no probability"):
        Verifier().judge([sequence], [tree], torch.zeros(2, VOCABULARY))


def test_a_draft_of_another_vocabulary_is_an_error() -> None:
    tree = TokenTree((4, 3), (-1, 0), Proposal({0: Distribution(torch.ones(VOCABULARY + 1) / (VOCABULARY + 1))}))
    with pytest.raises(PacelineError, match="draft knows 13 tokens but the target 12"):
        Verifier().judge([sequence_of([4], SAMPLED)], [tree], torch.zeros(2, VOCABULARY))


def test_what_does_not_belong_together_is_refused() -> None:
    sequence, tree = sequence_of([4], SAMPLED), TokenTree.chain(4, [1])
    with pytest.raises(ValueError, match="3 rows of logits for trees of 2 nodes"):
        Verifier().judge([sequence], [tree], torch.zeros(3, VOCABULARY))
    with pytest.raises(ValueError, match="pending token is 4"):
        Verifier().judge([sequence], [TokenTree.chain(5)], torch.zeros(1, VOCABULARY))
    with pytest.raises(UsageError, match="unknown verification rule 'typical'"):
        Verifier("typical")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="logit_bias names token 40"):
        Verifier().judge([sequence_of([4], Sampling(logit_bias={40: 1.0}))], [tree], torch.zeros(2, VOCABULARY))


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, Sampling(temperature=1.0, repetition_penalty=1.1)])
def test_a_prompt_full_of_special_ids_is_ordinary(sampling: Sampling) -> None:
    """EOS (say 2), padding and id 0 inside the prompt, as pending token, as draft and as output have no meaning here."""
    sequence = sequence_of([2, 0, 0, 2, 0], sampling)
    tree = TokenTree.chain(0, [0, 2, 2, 0])
    logits = torch.full((5, VOCABULARY), -50.0)
    for node, token in enumerate([0, 2, 2, 0, 0]):
        logits[node, token] = 50.0
    (verdict,) = Verifier().judge([sequence], [tree], logits)
    assert verdict.tokens == (0, 2, 2, 0, 0)


def test_state_follows_the_sequence_and_vanishes_with_it() -> None:
    verifier = Verifier()
    sequence = sequence_of([1, 2], Sampling(repetition_penalty=1.5))
    for token in (3, 4, 5):
        tree = TokenTree.chain(sequence.tokens[-1])
        verifier.judge([sequence], [tree], torch.zeros(1, VOCABULARY))
        sequence.tokens.append(token)
    assert len(verifier._processors) == 1
    sequence.tokens = [1, 2]  # taken back: counts start anew
    logits = torch.ones(1, VOCABULARY)
    logits[0, 3:6] = 1.2
    (verdict,) = verifier.judge([sequence], [TokenTree.chain(2)], logits)
    assert verdict.tokens == (3,)
    del sequence
    gc.collect()
    assert len(verifier._processors) == 0


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, Sampling(temperature=1.0, top_k=4, frequency_penalty=0.5), Sampling(logprobs=2)])
def test_logits_of_an_inference_mode_forward(sampling: Sampling) -> None:
    sequence, tree = sequence_of([1], sampling), TokenTree.chain(1, [2])
    with torch.inference_mode():
        logits = torch.ones(2, VOCABULARY)
    (verdict,) = Verifier().judge([sequence], [tree], logits)
    assert verdict.tokens


@pytest.mark.parametrize("logprobs", [0, 1, 5, 40])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "repetition_penalty": 1.5, "top_k": 2}])
def test_logprobs_are_those_of_raw_logits(sampling: dict[str, float], logprobs: int) -> None:
    sequence = sequence_of([3, 1], Sampling(logprobs=logprobs, seed=3, **sampling))  # type: ignore[arg-type]
    other = sequence_of([3, 1], Sampling(temperature=1.0))
    tree = TokenTree.from_paths(1, [[0, 5], [4], [7]])
    logits = tree_logits(sequence, tree)
    unscored, verdict = Verifier().judge([other, sequence], [tree, tree], torch.cat([logits, logits]))
    assert unscored.logprobs == ()
    assert len(verdict.logprobs) == len(verdict.tokens)
    for node, token, entry in zip((0, *verdict.accepted), verdict.tokens, verdict.logprobs, strict=True):
        scores = logits[node].log_softmax(-1)
        order = sorted(range(VOCABULARY), key=lambda each: (-scores[each].item(), each))
        assert (entry.token, entry.logprob) == (token, pytest.approx(scores[token].item(), abs=1e-6))
        assert [each for each, _ in entry.top] == order[:logprobs]
        assert [value for _, value in entry.top] == pytest.approx([scores[each].item() for each in order[:logprobs]], abs=1e-6)


def test_logprobs_of_nan_are_an_error() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 3] = torch.nan
    hidden = Sampling(no_repeat_ngram=1, logprobs=1)  # the ban covers the NaN for the argmax
    with pytest.raises(PacelineError, match="not finite"):
        Verifier().judge([sequence_of([3], hidden)], [TokenTree.chain(3)], logits)


@cuda
@settings(max_examples=20, deadline=None)
@given(samplings(), prompts, drafts, st.booleans())
def test_a_device_judges_like_the_host(sampling: Sampling, prompt: list[int], branches: list[list[int]], sampled: bool) -> None:
    sequence, tree = sequence_of(prompt, sampling), TokenTree.from_paths(prompt[-1], branches)
    if sampled:
        tree = with_random_proposal(tree)
    logits = tree_logits(sequence, tree, torch.float64)
    assert Verifier().judge([sequence], [tree], logits.cuda()) == Verifier().judge([sequence], [tree], logits)


@cuda
def test_greedy_on_a_device_waits_once() -> None:
    sequence, tree = sequence_of([1], Sampling()), TokenTree.chain(1, [2, 3])
    logits = torch.zeros(3, VOCABULARY, device="cuda", dtype=torch.bfloat16)

    def waits(action: Callable[[], object]) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return len(caught)

    assert waits(lambda: [logits[0, 0].item(), logits[1, 0].item()]) == 2
    assert waits(lambda: Verifier().judge([sequence], [tree], logits)) == 1

"""The kernel that walks down trees gives what the rules in Python give: paths, tokens, likeliest tokens, and their errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import VOCABULARY, drafts, prompts, sequence_of, tree_logits

from paceline.core.errors import PacelineError
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.core.verdict import Verdict
from paceline.kernels.judging import judge
from paceline.verification import compiled
from paceline.verification.verifier import RULES, Rule, Verifier

pytestmark = pytest.mark.skipif(judge() is None, reason="no C compiler on this machine: there are no kernels here")

LAWS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_p=0.95),
    Sampling(temperature=1.3, top_k=4),
    Sampling(temperature=1.5, top_k=9, top_p=0.8, min_p=0.02),
    Sampling(temperature=1e-9),
    Sampling(temperature=1.0, top_k=1000),
    Sampling(),
]


def proposal_of(tree: TokenTree, seed: int, replacement: bool) -> Proposal:
    """Children drawn from dense and sparse laws of both types, or chosen."""
    random = torch.Generator().manual_seed(seed)
    found: dict[int, Distribution] = {}
    for node, children in enumerate(tree.children()):
        kind = int(torch.randint(5, (), generator=random))
        if not children or kind == 0:
            continue
        probs = torch.rand(VOCABULARY, generator=random, dtype=torch.float64) ** 3 + 1e-6
        probs = probs / probs.sum()
        if kind == 1:
            found[node] = Distribution(probs)
        elif kind == 2:
            found[node] = Distribution(probs.float())
        else:
            known = sorted({tree.token[child] for child in children} | {3, 7})
            order = torch.tensor(known)[torch.randperm(len(known), generator=random)]
            few = probs[order] / (1 if kind == 3 else probs[order].sum())  # not normalised: what counts is the share
            found[node] = Distribution(few if kind == 3 else few.float(), order)
    return Proposal(found, replacement)


def judged(rule: Rule, members: list[tuple[Sampling, list[int], TokenTree]], dtype: torch.dtype, kernel: bool) -> tuple[object, ...]:
    """Verdicts and likeliest tokens of a batch, and how many sequences the kernel judged."""
    verifier, counted = Verifier(rule), []
    verifier.keeps = 5
    sequences = [sequence_of(prompt, sampling, sample) for sample, (sampling, prompt, _) in enumerate(members)]
    trees = [TokenTree((prompt[-1], *tree.token[1:]), tree.parent, tree.proposal) for _, prompt, tree in members]
    logits = torch.cat([tree_logits(sequence, tree) for sequence, tree in zip(sequences, trees, strict=True)]).to(dtype)
    whole = compiled.walked

    def some(*given: object) -> dict[int, object]:
        found = whole(*given) if kernel else {}  # type: ignore[arg-type]  # handed on as it came
        counted.append(len(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paceline.verification.verifier.walked", some)
        verdicts: list[Verdict] = verifier.judge(sequences, trees, logits)
    return verdicts, verifier.likeliest(), sum(counted)


trees = st.builds(
    lambda branches, seed, replacement, drawn: (
        tree := TokenTree.from_paths(0, branches),
        replace(tree, proposal=proposal_of(tree, seed, replacement)) if drawn else tree,
    )[1],
    drafts,
    st.integers(0, 1 << 20),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(LAWS), prompts, trees), min_size=1, max_size=3),
    st.sampled_from(RULES),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_kernel_judges_like_the_rules(members: list[tuple[Sampling, list[int], TokenTree]], rule: Rule, dtype: torch.dtype) -> None:
    verdicts, likeliest, count = judged(rule, members, dtype, kernel=True)
    expected, known, none = judged(rule, members, dtype, kernel=False)
    assert (count, none) == (len(members), 0)
    assert verdicts == expected
    assert likeliest == known


def flat(parent: list[int], token: list[int], q: dict[int, Distribution]) -> TokenTree:
    return TokenTree(tuple(token), tuple(parent), Proposal(q))


def test_a_wrong_ratio_shows() -> None:
    """The control: with q of another child, verdicts differ for some sequences."""
    q = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
    sharp = q.clone()
    sharp[5] = 0.9
    members = [(LAWS[0], [1, seed], flat([-1, 0], [0, 5], {0: Distribution(q)})) for seed in range(12)]
    wrong = [(law, prompt, replace(tree, proposal=Proposal({0: Distribution(sharp / sharp.sum())}))) for law, prompt, tree in members]
    assert judged("rejection", members, torch.float32, True)[0] != judged("rejection", wrong, torch.float32, True)[0]


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_branches_side_by_side_are_all_followed(rule: Rule) -> None:
    """Two branches may begin alike; only what comes later tells which goes further."""
    accepted = set()
    for seed in range(800):
        members = [(LAWS[0], [seed // 144, seed // 12 % 12, seed % 12], TokenTree((0, 4, 1, 4, 2), (-1, 0, 1, 0, 3)))]
        verdicts, _, _ = judged(rule, members, torch.float32, True)
        assert verdicts == judged(rule, members, torch.float32, False)[0]
        accepted.add(verdicts[0].accepted)  # type: ignore[index]
    assert (3, 4) in accepted or rule == "rejection"


@pytest.mark.parametrize(
    "q",
    [
        Distribution(torch.tensor([1.0]), torch.tensor([2])),  # not the child
        Distribution(torch.tensor([0.0, 1.0]), torch.tensor([5, 2])),  # the child without probability
        Distribution(torch.full((VOCABULARY + 1,), 0.1)),  # another vocabulary
    ],
)
def test_what_is_wrong_is_said_as_before(q: Distribution) -> None:
    members = [(LAWS[0], [1], flat([-1, 0], [0, 5], {0: q}))]
    with pytest.raises(PacelineError) as here:
        judged("rejection", members, torch.float32, True)
    with pytest.raises(PacelineError) as there:
        judged("rejection", members, torch.float32, False)
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize(
    "sampling", [Sampling(repetition_penalty=1.2), Sampling(temperature=1.0, repetition_penalty=1.2), Sampling(logit_bias={1: 1.0})]
)
def test_the_rest_is_left_to_the_rules(sampling: Sampling) -> None:
    tree = TokenTree.from_paths(0, [[1, 2], [3]])
    batch = [(sampling, [1, 2], tree), (LAWS[1], [1, 2], tree)]
    verdicts, _, count = judged("auto", batch, torch.float32, True)
    assert count == 1
    assert verdicts == judged("auto", batch, torch.float32, False)[0]


def test_other_types_are_left_to_the_rules() -> None:
    assert judged("auto", [(LAWS[0], [1], TokenTree.chain(0, [1]))], torch.float64, True)[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_first_of_the_largest(dtype: torch.dtype) -> None:
    """Signs, zeros, infinities and ties, in rows wide enough for vectors and a rest."""
    random = torch.Generator().manual_seed(0)
    tree, verifier = TokenTree.chain(0), Verifier()
    for trial in range(200):
        row = (torch.randint(-3, 3, (1, 37), generator=random) / 2 - (trial % 3)).to(dtype)
        row[0, trial % 37] = -0.0 if trial % 2 else -torch.inf
        if trial % 5 == 0:
            row[0, (3 * trial) % 37] = torch.inf
        sequence = sequence_of([0], Sampling())
        (verdict,) = verifier.judge([sequence], [tree], row)
        assert verdict.tokens == (int(row.float().numpy().argmax()),)
        row[0, 36] = torch.nan
        with pytest.raises(PacelineError):
            verifier.judge([sequence], [tree], row)

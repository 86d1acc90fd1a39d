"""What judging knows of laws, handed to drafters that ask for it: the right tokens, to the bit, and nothing for anybody else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch

from paceline.bench.audit.rig import Rig
from paceline.bench.audit.toy import toy_decoder
from paceline.core.batch import NO_TAPS, TapRequest
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import Likeliest, likeliest, target_distribution
from paceline.core.tree import ROOT, Distribution, Proposal, TokenTree
from paceline.drafting.base import Drafter
from paceline.drafting.stand import Stand
from paceline.drafting.stand import learning as stand_learning
from paceline.drafting.stand.config import StandConfig
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.verification import rows as judged_rows
from paceline.verification.verifier import Verifier

VOCABULARY = 12
PROMPTS = [(1, 2, 3, 1, 2), (4,), (5, 0, 5, 0, 5, 0, 1)]
TREE = TokenTree((5, 6, 7, 8), (-1, 0, 1, 0))
SAMPLINGS = [
    Sampling(temperature=0.8, top_p=0.9, seed=1),
    Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.3, seed=2),
    Sampling(temperature=1.1, seed=3),
    Sampling(),
]


def drawn(tree: TokenTree) -> TokenTree:
    law = Distribution(torch.full((VOCABULARY,), 1 / VOCABULARY))
    return TokenTree(tree.token, tree.parent, Proposal({node: law for node in range(len(tree)) if node in tree.parent}))


@pytest.mark.parametrize("tree", [TREE, drawn(TREE)], ids=["match", "rejection"])
@pytest.mark.parametrize("eager", [False, True], ids=["level by level", "all at once"])
def test_every_row_on_the_accepted_path_has_its_law_to_the_bit(tree: TokenTree, eager: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_rows, "judges_all_nodes", lambda device: eager)
    verifier = Verifier()
    verifier.keeps = 5
    sequences = [Sequence(uid, Request((4, 5), sampling)) for uid, sampling in enumerate(SAMPLINGS)]
    trees = [tree] * len(sequences)
    logits = torch.randn(len(trees) * len(tree), VOCABULARY, generator=torch.Generator().manual_seed(0))
    verdicts = verifier.judge(sequences, trees, logits)
    found = verifier.likeliest()
    processed = verifier.processed(sequences, trees, logits)
    for at, (sequence, verdict) in enumerate(zip(sequences, verdicts, strict=True)):
        first = at * len(tree)
        if sequence.request.sampling.greedy:
            assert not found.keys() & set(range(first, first + len(tree)))
            continue
        assert {first + node for node in (ROOT, *verdict.accepted)} == found.keys() & set(range(first, first + len(tree)))
    for row, likely in found.items():
        sampling = sequences[row // len(tree)].request.sampling
        assert likely == likeliest(list(target_distribution(processed[row : row + 1], sampling)), 5)[0]
    assert not verifier.likeliest()  # handed over once


def test_a_later_step_has_no_laws_of_an_earlier_one() -> None:
    verifier = Verifier()
    verifier.keeps = 5
    sampled, greedy = (Sequence(uid, Request((5,), sampling)) for uid, sampling in enumerate((SAMPLINGS[0], Sampling())))
    tree, logits = TokenTree.chain(5), torch.zeros(1, VOCABULARY)
    verifier.judge([sampled], [tree], logits)
    verifier.judge([greedy], [tree], logits)
    assert not verifier.likeliest()


def test_nobody_else_has_them_kept() -> None:
    verifier = Verifier()
    verifier.judge([Sequence(0, Request((5,), SAMPLINGS[0]))], [TokenTree.chain(5)], torch.zeros(1, VOCABULARY))
    assert not verifier.likeliest()
    assert (TapRequest(likeliest=3) | TapRequest(likeliest=5) | NO_TAPS).likeliest == 5
    assert not (NO_TAPS | NO_TAPS).likeliest


@pytest.fixture(scope="module")
def target() -> LLM:
    return load(toy_decoder(VOCABULARY, seed=2), "none", device="cpu", pack=False, kv_tokens=4)


class Unshown(Stand):
    """Hears of logits alone, and works every law out itself."""

    def __init__(self) -> None:
        super().__init__(StandConfig(scope="process"))
        self.taps = TapRequest(logits=True)


def taught(target: LLM, drafter: Drafter, sampling: Sampling) -> tuple[list[list[int]], dict[object, object]]:
    """Outputs, and every entry of the table."""
    assert isinstance(drafter, Stand)
    llm = Rig(target).wired(drafter, PROMPTS, 30)
    outputs = llm.generate([list(prompt) for prompt in PROMPTS], sampling, 30, ignore_eos=True)
    table = {(name, context): entry for name, space in drafter._spaces.named() for context, entry in drafter.table.contexts(space)}
    return [output.token_ids for output in outputs], table


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_learning_from_them_changes_no_bit(target: LLM, sampling: Sampling) -> None:
    assert taught(target, Stand(StandConfig(scope="process")), sampling) == taught(target, Unshown(), sampling)


def test_a_wrong_law_would_be_noticed(target: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what is handed over is what is learned."""
    shift: Mapping[int, Likeliest] = MappingProxyType({row: ([0], [1.0]) for row in range(500)})
    monkeypatch.setattr(Verifier, "likeliest", lambda self: shift)
    with pytest.raises(AssertionError):
        test_learning_from_them_changes_no_bit(target, SAMPLINGS[0])


def test_no_law_of_a_sampled_row_is_worked_out_twice(target: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sampling] = []
    honest = stand_learning.target_distribution

    def count(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        asked.append(sampling)
        return honest(logits, sampling)

    monkeypatch.setattr(stand_learning, "target_distribution", count)
    taught(target, Stand(StandConfig(scope="process")), SAMPLINGS[0])
    assert not asked
    taught(target, Stand(StandConfig(scope="process")), Sampling())  # greedy: a law that nobody else needs
    assert asked

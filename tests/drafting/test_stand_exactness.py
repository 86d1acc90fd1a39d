"""STAND through the loop: its sampled output has the target's law, its greedy output is the target's, and faults are noticed."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import product

import pytest
from stand_tables import interpreted, teach

from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.toy import toy_decoder
from paceline.bench.audit.toy_checks import check_loop_law, toy_rig
from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.core.request import Sequence
from paceline.core.rng import Purpose, key, uniforms
from paceline.core.sampling import Sampling
from paceline.core.tree import Distribution, Proposal, TokenTree
from paceline.drafting.base import DraftLimits
from paceline.drafting.stand import Stand, StandConfig
from paceline.drafting.stand.draw import Draft, Drawing
from paceline.drafting.stand.template import DEPTH, Template
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.planning.cost import ForwardCost

SOURCE = MarkovSource.random(vocabulary=8, support=5, spread=1.2, seed=1)
PLAIN = Sampling(temperature=1.0)
SMALL = "2x1"  # contexts; a second-order source is known by two
ALARM = 1e-4


def p_value(drafter: Stand, sampling: Sampling, tokens: int, sequences: int = 100) -> float:
    members = trajectories(sequences, tokens // sequences, sampling)
    steps = SOURCE.run(drafter, members)
    assert steps < 0.7 * tokens  # it did speculate
    return SOURCE.test(members).p_value


def test_sampled_output_has_the_law_of_the_target() -> None:
    """3-gram law by chi-square; the benchmark repeats it with more tokens."""
    assert p_value(Stand(StandConfig(nodes=5, contexts="2")), PLAIN, 50_000) > ALARM


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (StandConfig(nodes=8, contexts=SMALL), Sampling(temperature=0.8, top_p=0.9)),
        (StandConfig(nodes=5, contexts=SMALL, observe_rejected=True), PLAIN),
        (StandConfig(nodes=8, contexts="1", candidates=2), PLAIN),  # poor drafts: much is rejected
        (StandConfig(nodes=12, contexts=SMALL, scope="request"), PLAIN),
        (StandConfig(nodes=5, contexts="2", stochastic=False), PLAIN),
    ],
)
def test_so_it_has_under_other_settings(config: StandConfig, sampling: Sampling) -> None:
    assert p_value(Stand(config), sampling, 10_000) > ALARM


def test_so_it_has_without_kernels() -> None:
    config = StandConfig(nodes=8, contexts=SMALL)
    assert p_value(interpreted(Stand(config)), Sampling(temperature=0.8, top_p=0.9), 10_000) > ALARM
    members = trajectories(100, 100, PLAIN)
    SOURCE.run(interpreted(priced(config)), members)
    assert SOURCE.test(members).p_value > ALARM


def priced(config: StandConfig) -> Stand:
    """With the switch on: a further row costs a tenth of a forward."""
    cost = ForwardCost(lambda rows: 0.9 + 0.1 * rows)
    cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]  # seconds of a game are not those of a device
    return Stand(config, cost=cost)


@pytest.mark.parametrize("fallback", ["copy", "none"])
def test_drawing_only_what_pays_keeps_the_law(fallback: str) -> None:
    config = StandConfig(nodes=12, contexts=SMALL, fallback=fallback)  # type: ignore[arg-type]
    members = trajectories(100, 200, PLAIN)
    SOURCE.run(priced(config), members)
    assert SOURCE.test(members).p_value > ALARM
    sizes = {member.stats.drafted / member.stats.forwards for member in members[50:]}
    assert 0.1 < min(sizes) < max(sizes) < 12  # neither nothing nor everything


class PeekingBudget(Stand):
    """Fault: a draw is taken back once its value is known to be unlikely."""

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        trees = []
        for tree in super().propose(sequences, limits):
            if tree.proposal is not None and len(tree) > 1:
                law = tree.proposal.q[0].dense(SOURCE.vocabulary)
                kept = [token for token in tree.token[1:] if float(law[token]) > 0.3]
                tree = TokenTree((tree.token[0], *kept), (-1, *[0] * len(kept)), tree.proposal if kept else None)
            trees.append(tree)
        return trees


class SortedChildren(Stand):
    """Fault: children are sorted by probability behind the draw."""

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        return [resorted(tree) for tree in super().propose(sequences, limits)]


def resorted(tree: TokenTree) -> TokenTree:
    """A tree of depth one with its children in falling order of probability."""
    assert max(tree.depth) <= 1
    if tree.proposal is None or len(tree) == 1:
        return tree
    law = tree.proposal.q[0].dense(SOURCE.vocabulary)
    children = sorted(tree.token[1:], key=lambda token: -float(law[token]))
    return TokenTree((tree.token[0], *children), tree.parent, tree.proposal)


class SameNumbers(Drawing):
    def numbers(self, draft: Draft, node: int, count: int) -> list[float]:
        return uniforms(key(draft.walk.sequence.seed, 0, Purpose.DRAFT), range(count))


class ReusedNumbers(Stand):
    """Fault: every node of every step draws with the same numbers, those of the sequence's first node."""

    def __init__(self, config: StandConfig) -> None:
        super().__init__(config)
        interpreted(self, SameNumbers)


class NotRenormalised(Stand):
    """Fault: the proposal tells the stored probabilities, their missing mass left with the other tokens, not what was drawn from."""

    def propose(self, sequences: Many[Sequence], limits: Many[DraftLimits]) -> list[TokenTree]:
        trees = []
        for tree in super().propose(sequences, limits):
            if tree.proposal is not None:
                q = {node: self.stored(law) for node, law in tree.proposal.q.items()}
                tree = TokenTree(tree.token, tree.parent, Proposal(q))
            trees.append(tree)
        return trees

    @staticmethod
    def stored(law: Distribution) -> Distribution:
        dense = law.dense(SOURCE.vocabulary)
        return Distribution(0.7 * dense + 0.3 * (dense == 0) / max(1, int((dense == 0).sum())))


@pytest.mark.parametrize(
    ("fault", "config"),
    [
        (SortedChildren, StandConfig(nodes=3, contexts=SMALL, depth=1)),
        (PeekingBudget, StandConfig(nodes=3, contexts=SMALL, depth=1)),
        (ReusedNumbers, StandConfig(nodes=5, contexts="2")),
        (NotRenormalised, StandConfig(nodes=3, contexts=SMALL, candidates=3)),
    ],
)
def test_faults_are_noticed(fault: type[Stand], config: StandConfig) -> None:
    """Negative controls of the tests above."""
    members = trajectories(100, 200, PLAIN)
    SOURCE.run(fault(config), members)
    assert SOURCE.test(members).p_value < ALARM


def test_a_perfect_table_is_always_right() -> None:
    """q = p everywhere and a chain of depth d: d + 1 tokens per step."""
    depth, length = 4, 50
    drafter = Stand(StandConfig(contexts="2"), template=Template(tuple((0,) * size for size in range(1, depth + 1))))
    members = trajectories(4, length, PLAIN)
    laws = SOURCE.logits.softmax(-1)
    teach(drafter, members[0], {pair: dict(enumerate(laws[pair].tolist())) for pair in product(range(SOURCE.vocabulary), repeat=2)})
    steps = SOURCE.run(drafter, members)
    assert steps == 4 * length // (depth + 1)
    assert all(member.stats.accepted == member.stats.drafted for member in members)


def test_a_second_trajectory_is_faster_than_the_first() -> None:
    drafter = Stand(StandConfig(nodes=16))
    per_trajectory = [SOURCE.run(drafter, [member]) for member in trajectories(12, 100, PLAIN)]
    assert sum(per_trajectory[-3:]) < sum(per_trajectory[:3])
    apart = Stand(StandConfig(nodes=16, scope="request"))
    alone = [SOURCE.run(apart, [member]) for member in trajectories(12, 100, PLAIN)]
    assert sum(alone[-3:]) > sum(per_trajectory[-3:])


@dataclass(frozen=True)
class Toys:
    """Engines on one toy decoder."""

    target: LLM

    def ids(self, method: str, sampling: Sampling, **options: bool) -> tuple[list[list[int]], int]:
        llm = load(self.target, method, device="cpu", kv_tokens=2000, max_sequences=8, **options)  # type: ignore[arg-type]
        outputs = llm.generate(PROMPTS, sampling, 40, ignore_eos=True)
        return [output.token_ids for output in outputs], sum(output.stats.forwards for output in outputs)


PROMPTS = [[1, 2, 3, 1, 2], [0], [2, 0, 0, 2, 5, 5, 1], [9, 8, 7]]


@pytest.fixture(scope="module")
def toys() -> Toys:
    return Toys(load(toy_decoder(16, seed=3, eos=(2,)), "none", device="cpu", pack=False, kv_tokens=4))


METHODS = [
    "stand",
    "stand:scope=process,observe_rejected=true,nodes=16",
    "stand:contexts=4x3x2,greedy_temperature=0",
    "prompt-lookup+stand",
]


@pytest.mark.parametrize("method", METHODS)
def test_greedy_output_is_that_of_the_target(toys: Toys, method: str) -> None:
    plain, forwards = toys.ids("none", Sampling())
    mine, fewer = toys.ids(method, Sampling())
    assert mine == plain
    assert fewer < forwards


@pytest.mark.parametrize("method", METHODS)
def test_coupled_samples_are_those_of_the_target(toys: Toys, method: str) -> None:
    """Penalties and filters included."""
    sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=4)
    assert toys.ids(method, sampling, coupled=True)[0] == toys.ids("none", sampling)[0]


def test_a_repeated_seed_repeats_plain_decoding(toys: Toys) -> None:
    """The second request finds a table that its own random numbers made; it must not be judged as if it were independent of them."""
    llm = load(toys.target, "stand", device="cpu", kv_tokens=400)
    sampling = Sampling(temperature=1.0, seed=6)
    llm.generate([PROMPTS[0]], sampling, 40, ignore_eos=True)
    again = llm.generate([PROMPTS[0]], sampling, 40, ignore_eos=True)[0]
    plain = load(toys.target, "none", device="cpu", kv_tokens=400).generate([PROMPTS[0]], sampling, 40, ignore_eos=True)[0]
    assert again.token_ids == plain.token_ids


def test_an_empty_table_is_plain_decoding(toys: Toys) -> None:
    """Contexts longer than the text are never found."""
    llm = load(toys.target, "stand:contexts=90,fallback=none", device="cpu", kv_tokens=400)
    for sampling in (Sampling(), PLAIN):
        (output,) = llm.generate([PROMPTS[0]], sampling, 40, ignore_eos=True)
        assert output.stats.forwards == len(output.token_ids) == 40
        assert (
            output.token_ids
            == load(toys.target, "none", device="cpu", kv_tokens=400).generate([PROMPTS[0]], sampling, 40, ignore_eos=True)[0].token_ids
        )


def test_no_depth_is_plain_decoding(toys: Toys) -> None:
    plain, forwards = toys.ids("none", Sampling())
    assert toys.ids("stand:depth=0", Sampling()) == (plain, forwards)
    assert DEPTH == 20


def test_the_law_of_whole_outputs_through_the_engine() -> None:
    check = check_loop_law(toy_rig(), "stand", seed=5, promised=True)
    assert check.outcome is Outcome.PASSED, check.detail

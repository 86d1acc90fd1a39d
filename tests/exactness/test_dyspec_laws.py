"""DySpec keeps the target's law: the real growers by exact enumeration, the real drafter by counting, and wrong growers that are caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from law_enumeration import PROMPT, Rows, Trees, distance_to_plain, first_two, second_order
from table_laws import DRAFT, TARGET, deviation

from paceline.bench.chains import Outcome, TableRunner, simulate
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.tree import TokenTree
from paceline.drafting.base import Drafter, DraftLimits
from paceline.drafting.draft_model import DraftModel, DraftModelConfig
from paceline.drafting.dyspec import DySpec, DySpecConfig
from paceline.drafting.dyspec_growth import Bounds, Grower, Odds, Pick, Urn, ValueGrowth, best_first, draft_odds, layered, seedling
from paceline.drafting.dyspec_learning import AcceptanceCurve
from paceline.drafting.sequoia import Sequoia, SequoiaConfig
from paceline.verification.verifier import Verifier

V = 3
EXACT, CAUGHT = 1e-12, 1e-3
P, Q = second_order(V, seed=2), second_order(V, seed=11)

Grow = Callable[[ValueGrowth, Pick], Grower]


class Script:
    """One pass through a grower's draws: the first ones prescribed, the others the lowest possible token; `todo` gets what was left out."""

    def __init__(self, prescribed: list[int], todo: list[list[int]]) -> None:
        self.prescribed, self.todo = prescribed, todo
        self.taken: list[int] = []
        self.weight = 1.0

    def pick(self, growth: ValueGrowth, node: int, urn: Urn) -> int:
        siblings = {growth.token[child] for child in range(1, len(growth.token)) if growth.parent[child] == node}
        shares = {token: urn.share(token) for token in range(V) if urn.law[token] > 0 and token not in siblings}
        if len(self.taken) < len(self.prescribed):
            token = self.prescribed[len(self.taken)]
        else:
            token, *others = shares
            self.todo.extend([*self.taken, other] for other in others)
        self.weight *= shares[token]
        self.taken.append(token)
        return token


def every_tree(grow: Grow, q: Rows) -> Trees:
    """Every outcome of a grower's draws with its probability."""
    scripts: list[list[int]] = [[]]
    while scripts:
        script = Script(scripts.pop(), scripts)
        growth = seedling(PROMPT[-1])
        grower = grow(growth, script.pick)
        try:
            wanted = next(grower)
            while True:
                wanted = grower.send(torch.stack([q(history(growth, node)) for node in wanted]))
        except StopIteration:
            yield growth.tree(sampled=True)[0], script.weight


def history(growth: ValueGrowth, node: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while node:
        tokens.append(growth.token[node])
        node = growth.parent[node]
    return (*PROMPT, *reversed(tokens))


def experienced() -> AcceptanceCurve:
    """A curve far from the draft's probabilities, as past steps may leave it."""
    curve = AcceptanceCurve()
    for at in range(60):
        curve.observe(0.2 + 0.01 * at, 0, at % 3 > 0)
        curve.observe(0.9 - 0.01 * at, 1, at % 4 == 0)
    return curve


def distance(grow: Grow, p: Rows = P, q: Rows = Q) -> float:
    trees = list(every_tree(grow, q))
    assert sum(probability for _, probability in trees) == pytest.approx(1, abs=EXACT)
    return distance_to_plain(first_two(iter(trees), p, Verifier()), p, V)


@pytest.mark.parametrize("odds", [draft_odds, experienced()], ids=["draft", "calibrated"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_budget_growth_keeps_the_law(nodes: int, odds: Odds) -> None:
    """Page item 2 (and 8: calibration keeps it)."""
    assert distance(lambda growth, pick: best_first(growth, Bounds(nodes, 8), pick, odds)) < EXACT


@pytest.mark.parametrize("odds", [draft_odds, experienced()], ids=["draft", "calibrated"])
@pytest.mark.parametrize(("threshold", "nodes"), [(0.3, 9), (0.2, 4), (0.1, 4), (0.05, 3)])
def test_threshold_growth_keeps_the_law(threshold: float, nodes: int, odds: Odds) -> None:
    """The node limit cuts some of these trees in the middle of a layer."""
    assert distance(lambda growth, pick: layered(growth, Bounds(nodes, 3), threshold, pick, odds)) < EXACT


@pytest.mark.parametrize("seed", range(3))
def test_other_sources_ends_of_text_and_holes(seed: int) -> None:
    p, q = second_order(V, seed=30 + seed), second_order(V, seed=40 + seed)
    ends = Bounds(4, 2, frozenset({1}))
    assert distance(lambda growth, pick: best_first(growth, ends, pick), p, q) < EXACT
    assert distance(lambda growth, pick: layered(growth, ends, 0.1, pick), p, q) < EXACT
    holed = lambda tokens: torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)  # noqa: E731
    assert distance(lambda growth, pick: best_first(growth, ends, pick), p, holed) < EXACT


def test_one_node_is_ordinary_speculation_of_one_token() -> None:
    trees = list(every_tree(lambda growth, pick: best_first(growth, Bounds(1, 8), pick), Q))
    assert {(tree.token[1:], probability) for tree, probability in trees} == {((token,), Q(PROMPT)[token].item()) for token in range(V)}


# Wrong growers.


def test_catches_a_draw_taken_back_for_its_value() -> None:
    """A sibling is wanted only if it turns out likely: the decision has seen the value."""

    def peeking(growth: ValueGrowth, pick: Pick) -> Grower:
        yield from best_first(growth, Bounds(2, 1), pick)
        if growth.share[-1] < 0.5:
            for column in (growth.token, growth.parent, growth.depth, growth.row):
                column.pop()
        return growth.drafted

    assert distance(peeking) > CAUGHT


def test_catches_pruning_of_a_larger_tree() -> None:
    """Building two siblings and keeping the likelier one."""

    def pruned() -> Trees:
        for tree, probability in every_tree(lambda growth, pick: best_first(growth, Bounds(2, 1), pick), Q):
            assert tree.proposal is not None
            best = max(tree.token[1:], key=lambda token: Q(PROMPT)[token].item())
            yield TokenTree.chain(tree.token[0], [best], tree.proposal), probability

    assert distance_to_plain(first_two(pruned(), P, Verifier()), P, V) > CAUGHT


def test_catches_a_proposal_of_another_temperature() -> None:
    """The distribution reported is not the one drawn from."""

    def hotter() -> Trees:
        for tree, probability in every_tree(lambda growth, pick: best_first(growth, Bounds(2, 8), pick), Q):
            assert tree.proposal is not None
            laws = {node: type(law)(law.probs.sqrt() / law.probs.sqrt().sum()) for node, law in tree.proposal.q.items()}
            yield TokenTree(tree.token, tree.parent, type(tree.proposal)(laws)), probability

    assert distance_to_plain(first_two(hotter(), P, Verifier()), P, V) > CAUGHT


# Whole sequences: drafter, draft memory and verifier together, on tables.

DRAFTERS: dict[str, Callable[[TableRunner], Drafter]] = {
    "threshold": lambda runner: DySpec(DySpecConfig(budget=6), runner, frozenset()),
    "budget": lambda runner: DySpec(DySpecConfig(budget=4, mode="budget"), runner, frozenset()),
    "calibrated": lambda runner: DySpec(DySpecConfig(budget=6, value="calibrated"), runner, frozenset()),
    "sequoia": lambda runner: Sequoia(SequoiaConfig(nodes=6), runner, frozenset()),
    "with replacement": lambda runner: DraftModel(DraftModelConfig(2, "3x2", replacement=True), runner, frozenset()),
}


def decode(name: str, sampling: Sampling, tokens: int, sequences: int, target: torch.Tensor = TARGET) -> Outcome:
    runner = TableRunner(DRAFT)
    outcome = simulate(target, DRAFTERS[name](runner), sampling, tokens=tokens, sequences=sequences)
    assert runner.admitted == 0
    return outcome


@pytest.mark.parametrize("name", DRAFTERS)
def test_three_grams_follow_the_target(name: str) -> None:
    """Page item 6 on a twentieth of its tokens (`benchmarks/dyspec.py` takes all), with a control that sees the draft's law mixed in."""
    tokens, sequences = 100, 100
    output = decode(name, Sampling(temperature=1.0, seed=1000), tokens, sequences).output
    law = TARGET.softmax(-1)
    assert abs(deviation(output, tokens, law)) < 5
    assert deviation(output, tokens, 0.6 * law + 0.4 * DRAFT.softmax(-1)) > 5


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_output_is_the_targets(name: str) -> None:
    text = [0, 1]
    for _ in range(200):
        text.append(int(TARGET[text[-2], text[-1]].argmax()))
    for sequence in decode(name, Sampling(), 200, 3).output:
        assert sequence[:200] == text[2:202]


def test_catches_a_verifier_that_keeps_the_drafts_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: children accepted always."""
    from paceline.verification import rejection

    for rule in (rejection.Opening, rejection.Odds):
        monkeypatch.setattr(rule, "offer", lambda odds, tokens: [1.0] * len(tokens))
    output = decode("threshold", Sampling(temperature=1.0), 100, 60).output
    assert deviation(output, 100, TARGET.softmax(-1)) > 5


def test_a_draft_equal_to_a_greedy_target_is_accepted_to_the_depth_limit() -> None:
    """Page item 4: with a draft temperature of zero the tree is the greedy path."""
    config = DySpecConfig(budget=10, depth=5, temperature=0.0)
    outcome = simulate(TARGET, DySpec(config, TableRunner(TARGET), frozenset()), Sampling(), tokens=60)
    assert (outcome.tokens_per_call, outcome.nodes) == (6.0, 50)


@pytest.mark.parametrize(("option", "target", "expected"), [(-1.0, 0.3, 0.6), (-1.0, 1.2, 1.2), (-1.0, 0.0, 0.6), (0.9, 0.3, 0.9)])
def test_the_draft_temperature_rule(option: float, target: float, expected: float) -> None:
    """At least 0.6, whatever the target's; and neither top-p nor top-k of the target touch the draft."""
    drafter = DySpec(DySpecConfig(budget=4, temperature=option), TableRunner(DRAFT), frozenset())
    member = Sequence(0, Request(PROMPT, Sampling(temperature=target, top_p=0.5, top_k=2), max_tokens=40))
    drafter.propose([member], [DraftLimits(64, 40)])
    torch.testing.assert_close(drafter._drafts[0].growth.q[0].probs, (DRAFT[PROMPT] / expected).softmax(-1), rtol=0, atol=EXACT)


def test_a_sampling_target_is_never_offered_choices_as_draws() -> None:
    trees = []
    for draws in ("sampled", "likeliest"):
        drafter = DySpec(DySpecConfig(budget=8, draws=draws), TableRunner(DRAFT), frozenset())  # type: ignore[arg-type]
        member = Sequence(0, Request(PROMPT, Sampling(temperature=1.0, seed=4), max_tokens=40))
        (tree,) = drafter.propose([member], [DraftLimits(64, 40)])
        assert tree.proposal is not None
        trees.append((tree.token, tree.parent))
    assert trees[0] == trees[1]


def test_draws_and_choices_share_the_greedy_output() -> None:
    drawn = DySpec(DySpecConfig(budget=10, draws="sampled"), TableRunner(DRAFT), frozenset())
    chosen = DySpec(DySpecConfig(budget=10, draws="likeliest"), TableRunner(DRAFT), frozenset())
    first, second = (simulate(TARGET, drafter, Sampling(), tokens=100) for drafter in (drawn, chosen))
    assert first.output[0][:100] == second.output[0][:100]
    assert second.tokens_per_call >= first.tokens_per_call


def test_a_larger_budget_only_adds_nodes() -> None:
    """Page item 4 for the whole drafter, with its own random numbers; up to the budget of an offloaded target."""

    def grown(budget: int) -> list[tuple[int, int]]:
        drafter = DySpec(DySpecConfig(budget=budget, mode="budget"), TableRunner(DRAFT), frozenset())
        member = Sequence(0, Request(PROMPT, Sampling(temperature=1.0, seed=9), max_tokens=2000))
        (tree,) = drafter.propose([member], [DraftLimits(1000, 1000)])
        growth = drafter._drafts[0].growth
        assert len(tree) == 1 + budget
        assert max(growth.depth) <= 32
        return list(zip(growth.token, growth.parent, strict=True))

    largest = grown(768)
    for budget in (1, 2, 3, 7, 40):
        assert grown(budget) == largest[: budget + 1]


def test_draft_calls_are_reported() -> None:
    """Page item 5 for the whole drafter: one forward per layer, counted."""
    runner = TableRunner(DRAFT)
    drafter = DySpec(DySpecConfig(budget=12), runner, frozenset())
    outcome = simulate(TARGET, drafter, Sampling(temperature=1.0), tokens=60)
    assert drafter.forwards == runner.forwards == outcome.draft_calls
    assert drafter.steps == outcome.target_calls
    assert drafter.calls_per_tree == pytest.approx(outcome.draft_calls / outcome.target_calls)
    best = DySpec(DySpecConfig(budget=12, mode="budget"), TableRunner(DRAFT), frozenset())
    simulate(TARGET, best, Sampling(temperature=1.0), tokens=60)
    assert best.calls_per_tree > drafter.calls_per_tree

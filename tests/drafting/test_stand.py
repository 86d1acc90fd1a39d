"""STAND by itself: the law of its draws, the trees it builds, what it learns and what it forgets."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from stand_tables import interpreted, teach

from paceline.core.batch import Taps
from paceline.core.request import Request, Sequence
from paceline.core.rng import Purpose, uniform, uniforms
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import ROOT, TokenTree
from paceline.core.uniforms import stream, uniform_block
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftLimits
from paceline.drafting.stand import Stand, StandConfig
from paceline.drafting.stand.draw import Draft, Drawing
from paceline.drafting.stand.table import Entry
from paceline.drafting.stand.template import Template, default_template

SAMPLED = Sampling(temperature=1.0)
ROOM = DraftLimits(80, 80)
PAIR = Template(((0,), (1,)))


def sequence(uid: int = 0, tokens: tuple[int, ...] = (4, 5), sampling: Sampling = SAMPLED, **options: object) -> Sequence:
    return Sequence(uid, Request(tokens, sampling, max_tokens=100, **options))  # type: ignore[arg-type]


def seeded(seed: int) -> Sampling:
    return Sampling(temperature=1.0, seed=seed)


Laws = dict[tuple[int, ...], dict[int, float]]


def taught(laws: Laws, config: StandConfig | None = None, template: Template | None = None, drawing: type[Drawing] | None = None) -> Stand:
    """A drafter whose process-wide table holds these laws, for `SAMPLED` settings and greedy ones alike.

    Args:
        drawing: who draws, in plain Python; else whoever the drafter chooses.
    """
    drafter = Stand(config or StandConfig(scope="process"), frozenset({99}), template)
    if drawing is not None:
        interpreted(drafter, drawing)
    for uid, sampling in enumerate((SAMPLED, Sampling()), start=1000):
        teach(drafter, sequence(uid, sampling=sampling), laws)
    return drafter


def drafted(drafter: Stand, one: Sequence, limit: DraftLimits = ROOM) -> TokenTree:
    (tree,) = drafter.propose([one], [limit])
    return tree


def test_blocks_of_numbers_are_the_numbers_of_the_generator() -> None:
    streams = [stream(seed, 7, Purpose.DRAFT) for seed in (3, -1)]
    block = uniform_block(streams, [5, 1 << 60], 4)
    for row, (seed, first) in enumerate(((3, 5), (-1, 1 << 60))):
        numbers = [uniform(seed, 7, Purpose.DRAFT, first + at) for at in range(4)]
        assert block[row].tolist() == uniforms(streams[row], range(first, first + 4)) == numbers


def test_ordered_draws_have_the_law_of_sequential_draws_without_replacement() -> None:
    """q = (.6, .3, .1) and two children: exact probabilities of every ordered pair, 2e5 draws, four sigma."""
    drafter, draws, nodes = taught({}, StandConfig(scope="process", candidates=3), drawing=Drawing), 2 * 10**5, 10**4
    walk, entry = drafter._stand(sequence(), ROOM, 80), Entry.of([0, 1, 2], [0.54, 0.27, 0.09])
    draft, drawing = Draft.of(walk), drafter._draw
    assert isinstance(drawing, Drawing)
    draft.growth.depth = [0] * nodes
    found: Counter[tuple[int, ...]] = Counter()
    for walk.step in range(draws // nodes):
        found.update(tuple(drawing.order(draft, node, entry)[:2]) for node in range(nodes))
    law = {(0, 1): 0.45, (0, 2): 0.15, (1, 0): 9 / 35, (1, 2): 3 / 70, (2, 0): 1 / 15, (2, 1): 1 / 30}
    for pair, mass in law.items():
        assert abs(found[pair] - draws * mass) < 4 * (draws * mass * (1 - mass)) ** 0.5


def test_trees_hold_the_draws_in_order_with_the_law_they_came_from() -> None:
    drafter = taught({(5,): {0: 0.54, 7: 0.27, 3: 0.09}}, template=PAIR)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(3000):
        tree = drafted(drafter, sequence(seed, sampling=seeded(seed)))
        found[tree.token[1:]] += 1
        assert tree.proposal is not None
        assert not tree.proposal.replacement
        law = tree.proposal.q[ROOT]
        assert law.ids == (0, 7, 3)
        assert law.probs == pytest.approx([0.6, 0.3, 0.1])  # renormalised, the missing mass left out
        assert len(law.probs) == 3
    for pair, mass in {(0, 7): 0.45, (0, 3): 0.15, (7, 0): 9 / 35, (7, 3): 3 / 70, (3, 0): 1 / 15, (3, 7): 1 / 30}.items():
        assert abs(found[pair] - 3000 * mass) < 4 * (3000 * mass) ** 0.5


def test_numbers_are_never_used_twice() -> None:
    """Nodes of one tree, steps at one position, and sequences all draw with their own numbers."""
    used: list[float] = []

    class Listening(Drawing):
        def numbers(self, draft: Draft, node: int, count: int) -> list[float]:
            numbers = super().numbers(draft, node, count)
            used.extend(numbers)
            return numbers

    drafter = taught({(token,): {0: 0.5, 1: 0.5} for token in (0, 1, 5)}, template=default_template(80), drawing=Listening)
    for seed in range(3):
        one = sequence(seed, sampling=seeded(seed))
        drafted(drafter, one)
        one.tokens.append(5)
        drafted(drafter, one)
    assert len(used) > 400
    assert len(set(used)) == len(used)


def test_drafts_depend_on_nothing_but_seed_step_and_table() -> None:
    laws = {(token,): {0: 0.5, 1: 0.3, 5: 0.1} for token in (0, 1, 5)}
    config = StandConfig(scope="process", nodes=16)
    alone = drafted(taught(laws, config), sequence(0, sampling=seeded(8)))
    drafter = taught(laws, config)
    mates = [sequence(uid, sampling=seeded(100 + uid)) for uid in range(1, 4)]
    trees = drafter.propose([*mates, sequence(0, sampling=seeded(8))], [ROOM] * 4)
    assert trees[-1].token == alone.token
    assert trees[-1].parent == alone.parent
    assert trees[0].token != alone.token


def test_the_longest_known_context_decides() -> None:
    laws = {(5,): {1: 0.9}, (4, 5): {2: 0.9}, (3, 4, 5): {3: 0.9}}
    short, chain = StandConfig(scope="process", contexts="3x2x1"), Template(((0,),))
    assert drafted(taught(laws, short, chain), sequence(tokens=(3, 4, 5))).token == (5, 3)
    assert drafted(taught(laws, short, chain), sequence(tokens=(9, 4, 5))).token == (5, 2)
    assert drafted(taught(laws, short, chain), sequence(tokens=(9, 5))).token == (5, 1)
    assert drafted(taught(laws, short, chain), sequence(tokens=(5,))).token == (5, 1)  # fewer tokens than the longest context
    assert drafted(taught(laws, short, chain), sequence(tokens=(5, 9))).token == (9,)  # no hit: plain decoding
    longer = StandConfig(scope="process", contexts="4x3x2")
    assert drafted(taught(laws, longer, chain), sequence(tokens=(9, 5))).token == (5,)


def test_contexts_run_along_the_draft() -> None:
    laws = {(4, 5): {6: 0.9}, (5, 6): {7: 0.9}, (6, 7): {8: 0.9}}
    config = StandConfig(scope="process", contexts="2")
    assert drafted(taught(laws, config, default_template(20)), sequence()).token == (5, 6, 7, 8)


def test_a_greedy_target_gets_the_likeliest_and_no_proposal() -> None:
    laws = {(5,): {3: 0.5, 0: 0.4, 9: 0.05}, (3,): {1: 0.9}, (0,): {2: 0.9}}
    template = Template(((0,), (1,), (0, 0), (1, 0)))
    tree = drafted(taught(laws, template=template), sequence(sampling=Sampling()))
    assert tree.token == (5, 3, 1, 0, 2)
    assert tree.parent == (-1, 0, 1, 0, 3)
    assert tree.proposal is None


def test_missing_candidates_leave_their_subtree_out() -> None:
    template = Template(((0,), (1,), (2,), (0, 0), (2, 0)))
    tree = drafted(taught({(5,): {3: 0.5, 0: 0.4}, (3,): {1: 0.9}}, template=template), sequence(sampling=Sampling()))
    assert tree.token == (5, 3, 1, 0)


@pytest.mark.parametrize("nodes", [0, 1, 5, 64])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_limits_hold(nodes: int, depth: int) -> None:
    drafter = taught({(token,): {0: 0.5, 1: 0.3, 5: 0.1} for token in (0, 1, 5)})
    for sampling in (SAMPLED, Sampling()):
        tree = drafted(drafter, sequence(sampling=sampling), DraftLimits(nodes, depth))
        assert len(tree) - 1 <= nodes
        assert max(tree.depth) <= depth
        assert (len(tree) > 1) == (nodes > 0 and depth > 0)


def test_nothing_is_drafted_below_an_end() -> None:
    drafter = taught({(5,): {99: 0.9}, (99,): {5: 0.9}, (7,): {8: 0.9}, (8,): {7: 0.9}})
    assert drafted(drafter, sequence()).token == (5, 99)
    assert len(drafted(drafter, sequence(1, ignore_eos=True))) > 3
    assert drafted(drafter, sequence(2, tokens=(7,), stop_ids=frozenset({8}))).token == (7, 8)


def test_trees_are_smaller_in_larger_batches() -> None:
    drafter = taught({(token,): dict.fromkeys(range(6), 0.15) for token in range(6)})
    sizes = []
    for batch in (1, 4, 8):
        members = [sequence(uid, sampling=seeded(uid)) for uid in range(batch)]
        sizes.append(max(len(tree) - 1 for tree in drafter.propose(members, [ROOM] * batch)))
    assert sizes == [80, 32, 16]


def observed(drafter: Stand, one: Sequence, tree: TokenTree, verdict: Verdict, logits: torch.Tensor) -> None:
    one.tokens.extend(verdict.tokens)
    drafter.observe([one], [tree], [verdict], Taps(logits=logits))


def remembered(drafter: Stand, one: Sequence, context: tuple[int, ...]) -> dict[int, float] | None:
    row = dict(drafter.table.contexts(drafter._spaces.enter(one))).get(context)
    return None if row is None else dict(zip(row.ids, row.probs, strict=True))


def learn(config: StandConfig, sampling: Sampling) -> tuple[Stand, Sequence, torch.Tensor]:
    """One step: of the tree 5 -> (6 -> 7, 8), the path 6 is accepted and 9 is the correction."""
    drafter, one = Stand(config), sequence(sampling=sampling)
    drafted(drafter, one)
    tree = TokenTree((5, 6, 7, 8), (-1, 0, 1, 0))
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    observed(drafter, one, tree, Verdict((1,), (6, 9)), logits)
    return drafter, one, logits


def test_the_accepted_path_and_the_corrected_position_are_learned_for_all_contexts() -> None:
    sampling = Sampling(temperature=0.6, top_p=0.8)
    drafter, one, logits = learn(StandConfig(contexts="3x2x1"), sampling)
    laws = target_distribution(logits, sampling)
    for contexts, row in (([(5,), (4, 5)], 0), ([(6,), (5, 6), (4, 5, 6)], 1)):
        best = laws[row].topk(10)
        wanted = {token: prob for token, prob in zip(best.indices.tolist(), best.values.tolist(), strict=True) if prob > 0}
        assert len(wanted) < 10  # the filter left fewer
        for context in contexts:
            assert remembered(drafter, one, context) == pytest.approx(wanted)
    assert remembered(drafter, one, (7,)) is None
    assert remembered(drafter, one, (8,)) is None
    assert len(drafter.table) == 5
    assert drafter.memory_bytes() > 0


def test_rejected_nodes_are_learned_on_request() -> None:
    drafter, one, logits = learn(StandConfig(observe_rejected=True, contexts="3x2x1"), SAMPLED)
    law = target_distribution(logits, SAMPLED)[2]
    assert remembered(drafter, one, (5, 6, 7)) == pytest.approx({token: float(law[token]) for token in law.topk(10).indices.tolist()})
    assert remembered(drafter, one, (5, 8)) is not None
    assert remembered(drafter, one, (9,)) is None  # not judged yet


def test_tempering_after_truncation_would_be_another_law() -> None:
    """Negative control: the stored law is the tempered one, not a tempered top 10 of the raw one."""
    sampling = Sampling(temperature=0.6)
    drafter, one, logits = learn(StandConfig(candidates=3), sampling)
    raw, _ = logits[0].softmax(-1).topk(3)
    wrong = raw ** (1 / 0.6) / (raw ** (1 / 0.6)).sum()
    found = remembered(drafter, one, (5,))
    assert found is not None
    assert sum(found.values()) < 0.999
    assert sorted(found.values(), reverse=True) != pytest.approx(wrong.tolist())


@pytest.mark.parametrize(("temperature", "size"), [(1.0, 10), (0.0, 1)])
def test_for_a_greedy_target_a_spread_law_is_remembered_unless_told_otherwise(temperature: float, size: int) -> None:
    drafter, one, logits = learn(StandConfig(greedy_temperature=temperature), Sampling())
    found = remembered(drafter, one, (5,))
    assert found is not None
    assert len(found) == size
    assert next(iter(found)) == int(logits[0].argmax())


def test_nothing_is_learned_between_drafting_and_judging() -> None:
    drafter = taught({(5,): {0: 0.5}})
    before = len(drafter.table)
    drafted(drafter, sequence())
    assert len(drafter.table) == before


def test_a_second_sequence_with_the_same_random_numbers_is_judged_by_plain_samples() -> None:
    """The table depends on the numbers of the first; sample-and-match is exact whatever a draft depends on."""
    drafter = taught({(5,): {0: 0.5, 1: 0.3}})
    assert drafted(drafter, sequence(0, sampling=seeded(3))).proposal is not None
    assert drafted(drafter, sequence(1, sampling=seeded(3))).proposal is None
    assert drafted(drafter, sequence(2, sampling=seeded(4))).proposal is not None
    assert drafted(drafter, sequence(0, sampling=seeded(3))).proposal is not None


def test_release_forgets_the_sequence_and_in_time_its_table() -> None:
    drafter = Stand(StandConfig(idle=0))
    one = sequence()
    tree = drafted(drafter, one)
    observed(drafter, one, tree, Verdict((), (9,)), torch.zeros(1, 12))
    assert len(drafter.table) > 0
    drafter.release(one)
    assert len(drafter.table) == 0
    assert not drafter._walks
    drafter.release(one)  # cancelled before it ever drafted


def test_accepted_ranks_are_recorded_on_request() -> None:
    drafter = taught({(5,): {3: 0.5, 0: 0.4}, (0,): {2: 0.9}}, StandConfig(scope="process", record=True))
    one = sequence(sampling=Sampling())
    tree = drafted(drafter, one)
    path = tuple(node for node in range(len(tree)) if [tree.token[step] for step in tree.path(node)] in ([0], [0, 2]))
    observed(drafter, one, tree, Verdict(path, (0, 2, 8)), torch.zeros(len(tree), 12))
    assert drafter.traces == [(1, 0)]


def test_without_logits_there_is_nothing_to_learn_from() -> None:
    drafter, one = Stand(StandConfig()), sequence()
    tree = drafted(drafter, one)
    with pytest.raises(ValueError, match="logits"):
        drafter.observe([one], [tree], [Verdict((), (1,))], Taps())

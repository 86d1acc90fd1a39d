"""STAND where many trajectories meet one table: order of learning, room, forbidden tokens, and drawn against chosen drafts."""

from __future__ import annotations

from array import array
from itertools import product

import pytest
import torch
from stand_tables import teach

from paceline.bench.markov_source import MarkovSource, trajectories
from paceline.core.batch import Taps
from paceline.core.request import Request, Sequence
from paceline.core.sampling import Sampling
from paceline.core.transform import target_distribution
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting.base import DraftLimits
from paceline.drafting.stand import Stand
from paceline.drafting.stand.config import StandConfig
from paceline.drafting.stand.learning import Lesson, learn
from paceline.drafting.stand.scope import Space
from paceline.drafting.stand.table import NgramTable
from paceline.drafting.stand.template import Template
from paceline.verification.verifier import Verifier

VOCABULARY = 12
SAMPLED = Sampling(temperature=1.0)


def test_a_batch_is_learned_in_row_order_after_it_was_judged() -> None:
    members = [Sequence(uid, Request((9, first), Sampling(temperature=1.0, seed=uid), tenant="t")) for uid, first in enumerate((4, 2, 7))]
    drafter = Stand(StandConfig(contexts="1", scope="user"))
    trees = drafter.propose(members, [DraftLimits(4, 4)] * 3)
    assert [len(tree) for tree in trees] == [1, 1, 1]
    verdicts = [Verdict((), (token,)) for token in (1, 2, 3)]
    drafter.observe(members, trees, verdicts, Taps(logits=torch.zeros(3, VOCABULARY)))
    ((_, space),) = drafter._spaces.named()
    assert [context for context, _ in drafter.table.contexts(space)] == [(4,), (2,), (7,)]


def test_what_does_not_fit_is_evicted_and_counted() -> None:
    drafter = Stand(StandConfig(contexts="1", max_entries=2))
    one = Sequence(0, Request((4,), SAMPLED))
    for token in (5, 6, 7):
        trees = drafter.propose([one], [DraftLimits(0, 0)])
        one.tokens.append(token)
        drafter.observe([one], trees, [Verdict((), (token,))], Taps(logits=torch.zeros(1, VOCABULARY)))
    assert len(drafter.table) == 2
    assert drafter.evictions == 1


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("sampling", [{"no_repeat_ngram": 2}, {"logit_bias": {5: -torch.inf, 6: -torch.inf}}], ids=["ngram", "bias"])
def test_entries_whose_tokens_are_all_forbidden_are_rejected_and_the_law_stays(sampling: dict[str, object], stochastic: bool) -> None:
    """Penalties depend on the history, which the table does not: what it holds may be impossible here."""
    history, logits = (4, 5, 4, 6, 4), torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)).expand(3, -1)
    found = torch.zeros(VOCABULARY)
    runs = 3000
    drafter = Stand(StandConfig(scope="process", contexts="1", stochastic=stochastic), template=Template(((0,), (1,))))
    verifier = Verifier()
    members = [Sequence(seed, Request(history, Sampling(temperature=1.0, seed=seed, **sampling))) for seed in range(runs)]  # type: ignore[arg-type]
    teach(drafter, members[0], {(4,): {5: 0.6, 6: 0.4}})
    for at in range(0, runs, 500):
        group = members[at : at + 500]
        trees = drafter.propose(group, [DraftLimits(2, 1)] * 500)
        assert all(sorted(tree.token[1:]) == [5, 6] for tree in trees)
        assert all((tree.proposal is not None) == stochastic for tree in trees)
        for verdict in verifier.judge(group, trees, logits.repeat(500, 1)):
            assert not verdict.accepted
            found[verdict.tokens[0]] += 1
    forbidden = torch.zeros(VOCABULARY).index_fill_(0, torch.tensor([5, 6]), -torch.inf)
    law = target_distribution(logits[:1] + forbidden, SAMPLED)[0]
    assert found[[5, 6]].sum() == 0
    expected = runs * law
    assert ((found - expected).abs() < 4.5 * (expected * (1 - law)).sqrt() + 1e-9).all()


def full(*widths: int) -> Template:
    """Every node of depth d has `widths[d]` children."""
    levels = [product(*(range(width) for width in widths[:depth])) for depth in range(1, len(widths) + 1)]
    return Template(tuple(path for level in levels for path in level))


def test_drawn_drafts_beat_chosen_ones_and_both_grow_with_trajectories() -> None:
    """The page's simulation in small: 40 tokens, 5 behind each pair of them, tree 4-2-1-1-1."""
    source = MarkovSource.random(40, 5, seed=0)
    steps = {}
    for stochastic in (True, False):
        drafter = Stand(StandConfig(stochastic=stochastic, fallback="none"), template=full(4, 2, 1, 1, 1))
        steps[stochastic] = [source.run(drafter, [member]) for member in trajectories(8, 200, SAMPLED)]
    drawn, chosen = (sum(steps[stochastic][-4:]) for stochastic in (True, False))
    assert drawn < 0.85 * chosen
    for taken in steps.values():
        assert sum(taken[-2:]) < 0.75 * sum(taken[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_the_remembered_tokens_are_the_likeliest_with_ties_to_the_lowest_id(dtype: torch.dtype, top_p: float) -> None:
    """Coarse logits make ties common, at the border of what is kept too."""
    sampling = Sampling(temperature=1.0, top_p=top_p)
    logits = torch.randint(0, 4, (40, 50), generator=torch.Generator().manual_seed(3)).to(dtype)
    for count in (1, 4, 10):
        table, space, text = NgramTable((1,), count, 1000), Space(), array("i", range(40))
        learn(table, StandConfig(candidates=count, contexts="1"), [Lesson(space, sampling, text, 0, 1, range(40), text[1:])], logits)
        for row, law in enumerate(target_distribution(logits, sampling).float().tolist()):
            best = sorted((-prob, token) for token, prob in enumerate(law) if prob > 0)[:count]
            found = table.longest(space, (row,))
            assert found is not None
            entry = found[0]
            assert list(zip(entry.ids, entry.probs, strict=True)) == [(token, -prob) for prob, token in best]


def test_a_rejected_branch_is_learned_behind_its_own_path() -> None:
    """Contexts of judged nodes run along the tree, whatever was accepted."""
    drafter = Stand(StandConfig(contexts="3", observe_rejected=True))
    one = Sequence(0, Request((3, 4, 5), SAMPLED))
    drafter.propose([one], [DraftLimits(8, 8)])
    one.tokens.extend((6, 9))
    tree = TokenTree((5, 6, 7, 8), (-1, 0, 1, 0))
    drafter.observe([one], [tree], [Verdict((1,), (6, 9))], Taps(logits=torch.zeros(4, VOCABULARY)))
    ((_, space),) = drafter._spaces.named()
    assert {context for context, _ in drafter.table.contexts(space)} == {(3, 4, 5), (4, 5, 6), (5, 6, 7), (4, 5, 8)}

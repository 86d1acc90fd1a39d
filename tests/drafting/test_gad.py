"""Generalised aggressive decoding by itself: which slot is which token, call counts, the tolerance rule, and what it promises."""

from __future__ import annotations

from collections.abc import Sequence as Many
from math import ceil

import pytest
import torch
from torch import Tensor

from paceline.bench.audit.run import guarantee_of
from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.registry import EXACT, find, parse
from paceline.core.request import Request, Sequence
from paceline.core.tolerance import Tolerance
from paceline.core.tree import TokenTree
from paceline.drafting.base import DraftContext, DraftLimits
from paceline.drafting.gad import Gad, GadConfig, until
from paceline.models.nat import NatConfig, NatDrafter, Source, new_nat
from paceline.verification.verifier import Verifier

START, MASK, EOS = 3, 2, 0
VOCABULARY = 40
CONFIG = NatConfig(VOCABULARY, 8, 2, 1, 1, 8, 8, positions=64, block=5)
ROOMY = DraftLimits(64, 64)


class Scripted(NatDrafter):
    """Knows the whole output; says something else at chosen slots of every block. Records what it was shown."""

    def __init__(self, output: Many[int], wrong: Many[int] = (), shift: int = 0) -> None:
        super().__init__(CONFIG)
        self.output, self.wrong, self.shift = list(output), set(wrong), shift
        self.shown: list[tuple[list[int], list[bool]]] = []

    def forward(self, source: Source, ids: Tensor, slots: Tensor, known: Tensor | None = None) -> Tensor:
        (row,), (marks,) = ids.tolist(), slots.tolist()
        self.shown.append((row, marks))
        first = marks.index(True)
        said = torch.zeros(1, len(row), VOCABULARY)
        for at in range(first, len(row)):
            place = at + self.shift
            token = self.output[place] if place < len(self.output) else 7
            said[0, at, (token + 1) % VOCABULARY if at - first in self.wrong else token] = 1.0
        return said

    def logits(self, states: Tensor) -> Tensor:
        return states


def gad(network: NatDrafter, k: int = 5) -> Gad:
    return Gad(GadConfig(k=k), network, frozenset({EOS}))


def sequence(output: Many[int] = (), source: Many[int] = (9, 8, 7), uid: int = 0) -> Sequence:
    made = Sequence(uid, Request((START,), max_tokens=200, source=tuple(source)))
    made.tokens.extend(output)
    return made


def target_logits(running: Sequence, tree: TokenTree, output: Many[int]) -> Tensor:
    """A target that wants `output` at its positions: row of depth d decides output position len(output so far) + d."""
    rows = torch.zeros(len(tree), VOCABULARY)
    for node, depth in enumerate(tree.depth):
        place = len(running.output) + depth
        rows[node, output[place] if place < len(output) else 5] = 3.0
    return rows


def calls(drafter: Gad, output: list[int]) -> int:
    """Target forwards until the output stands, checked against it."""
    running, verifier, count = sequence(), Verifier(), 0
    while len(running.output) < len(output):
        (tree,) = drafter.propose([running], [DraftLimits(64, len(output) - len(running.output) - 1)])
        (verdict,) = verifier.judge([running], [tree], target_logits(running, tree, output))
        running.tokens.extend(verdict.tokens)
        count += 1
    assert running.output == output
    return count


OUTPUT = [*range(10, 33), EOS]


@pytest.mark.parametrize("k", [1, 3, 5, 25])
def test_a_perfect_drafter_needs_one_call_per_block_and_bonus(k: int) -> None:
    for length in (1, 4, 6, 7, 24):
        output = OUTPUT[-length:]
        assert calls(gad(Scripted(output), k), output) == ceil(length / (k + 1))


def test_a_drafter_that_is_wrong_at_once_costs_plain_decoding() -> None:
    assert calls(gad(Scripted(OUTPUT, wrong=[0])), OUTPUT) == len(OUTPUT)


def test_a_slip_in_slot_j_leaves_j_tokens_and_the_correction() -> None:
    assert calls(gad(Scripted(OUTPUT, wrong=[2])), OUTPUT) == ceil(len(OUTPUT) / 3)


@pytest.mark.parametrize("shift", [-1, 1])
def test_reading_slots_one_off_would_be_noticed(shift: int) -> None:
    """Negative control of the trap on the page: a drafter read as if its input were shifted drafts nothing right."""
    assert calls(gad(Scripted(OUTPUT, shift=shift)), OUTPUT) >= len(OUTPUT) - 1


def test_the_drafter_reads_the_output_unshifted_and_without_the_start_symbol() -> None:
    network = Scripted(OUTPUT)
    gad(network).propose([sequence(OUTPUT[:4])], [ROOMY])
    ((row, marks),) = network.shown
    assert row == [*OUTPUT[:4], *[MASK] * 5]
    assert marks == [False] * 4 + [True] * 5


def test_a_mask_in_the_output_is_not_a_slot() -> None:
    network = Scripted([10, MASK, 12, 13, 14, 15, 16, 17])
    (tree,) = gad(network).propose([sequence([10, MASK, 12])], [ROOMY])
    assert network.shown[0][1] == [False] * 3 + [True] * 5
    assert tree.token == (12, 13, 14, 15, 16, 17)


def test_all_slots_are_asked_even_where_few_may_be_used() -> None:
    network = Scripted(OUTPUT)
    (tree,) = gad(network).propose([sequence(OUTPUT[:4])], [DraftLimits(64, 2)])
    assert len(network.shown[0][0]) == 4 + 5
    assert tree.token[1:] == tuple(OUTPUT[4:6])


@pytest.mark.parametrize("limit", [DraftLimits(0, 0), DraftLimits(3, 64), DraftLimits(64, 2)])
def test_limits_are_kept(limit: DraftLimits) -> None:
    (tree,) = gad(Scripted(OUTPUT)).propose([sequence()], [limit])
    assert len(tree) - 1 == min(limit.nodes, limit.depth, 5)


def test_nothing_is_drafted_behind_the_end() -> None:
    (tree,) = gad(Scripted([10, 11, EOS, 12, 13])).propose([sequence()], [ROOMY])
    assert tree.token[1:] == (10, 11, EOS)
    assert until([1, 2, 3], frozenset({2}), keep=False) == [1]


def test_what_the_network_cannot_read_is_decoded_plainly() -> None:
    drafter = gad(Scripted(OUTPUT))
    for running in (sequence(source=()), sequence(source=[5] * 65), sequence(output=[5] * 64)):
        assert len(drafter.propose([running], [ROOMY])[0]) == 1
    (short,) = drafter.propose([sequence(output=[5] * 62)], [ROOMY])
    assert len(short) == 1 + 2  # the block shrinks to the positions left


def test_many_sequences_at_once_draft_what_they_draft_alone() -> None:
    network = new_nat(CONFIG, 4).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    rows = [sequence([6] * at, range(5, 8 + at), uid=at) for at in range(4)]
    limits = [ROOMY, DraftLimits(0, 0), ROOMY, DraftLimits(64, 3)]
    together = gad(network).propose(rows, limits)
    alone = [gad(network).propose([row], [limit])[0] for row, limit in zip(rows, limits, strict=True)]
    assert together == alone
    assert len({tree.token for tree in together}) > 2


def test_sources_are_encoded_once_and_forgotten() -> None:
    network = new_nat(CONFIG, 4).eval()
    reads = []
    network.encoder[0].register_forward_hook(lambda *_: reads.append(1))
    drafter, running = gad(network), sequence()
    for _ in range(3):
        drafter.propose([running], [ROOMY])
    assert len(reads) == 1
    assert drafter.memory_bytes() > 0
    drafter.release(running)
    assert drafter.memory_bytes() == 0


def context(network: object) -> DraftContext:
    return DraftContext(VOCABULARY, frozenset({EOS}), lambda rows: 1.0, network=network)


def test_a_network_is_required() -> None:
    assert Gad.build(GadConfig(), context(new_nat(CONFIG, 0))).config.k == 25
    with pytest.raises(UsageError, match=r"needs a non-autoregressive drafter; name one with draft="):
        Gad.build(GadConfig(), context(None))


def test_only_slots_that_are_believed_are_verified() -> None:
    """Confidence cuts the chain where the product of the drafter's own probabilities falls below it, and nowhere else."""
    network = new_nat(CONFIG, 4).eval()
    with torch.no_grad():
        network.embedding.weight.mul_(60)
    running = sequence(OUTPUT[:2])
    (whole,) = Gad(GadConfig(k=5), network, frozenset()).propose([running], [ROOMY])
    encoded = network.encode(torch.tensor([running.request.source]))
    odds = network.fill(encoded, torch.tensor(OUTPUT[:2]), 5).softmax(-1).amax(-1).cumprod(0).tolist()
    for asked in (0.0, 1e-6, odds[3] * 0.999, odds[1] * 0.999, odds[0] * 1.001, 1.0):
        (tree,) = Gad(GadConfig(k=5, confidence=min(1.0, asked)), network, frozenset()).propose([running], [ROOMY])
        assert tree.token == whole.token[: 1 + sum(odd >= asked for odd in odds)]


@pytest.mark.parametrize(
    "text", ["gad:k=-1", "gad:confidence=1.5", "gad:beta=0", "gad:tau=-0.5", "gad:tau=nan", "gad:beta=x", "gad:gamma=1"]
)
def test_bad_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)[0].config()


def test_only_exact_matching_is_called_lossless() -> None:
    assert (find("gad").greedy, find("gad").sampling) == EXACT
    assert parse("gad:k=7,tau=3")[0].guarantees == EXACT  # beta is 1: tau is void
    for text in ("gad:beta=5", "gad:beta=2+prompt-lookup", "prompt-lookup+gad:beta=2,tau=1"):
        assert guarantee_of(text) == {"greedy": Guarantee.BOUNDED, "sampling": Guarantee.DISTRIBUTION_IDENTICAL}
    assert guarantee_of("gad+prompt-lookup") == dict(zip(("greedy", "sampling"), EXACT, strict=True))


def test_trees_carry_the_tolerance_only_where_it_is_not_exact() -> None:
    for config, wanted in ((GadConfig(), None), (GadConfig(tau=3.0), None), (GadConfig(beta=3, tau=1.0), Tolerance(3, 1.0))):
        (tree,) = Gad(config, Scripted(OUTPUT), frozenset({EOS})).propose([sequence()], [ROOMY])
        assert tree.tolerance == wanted

"""Enumerated laws, the chi-square test, and the faults they must tell apart."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from paceline.bench.audit import toy_checks
from paceline.bench.audit.laws import Family, chi_square, distance, plain_law, speculative_law
from paceline.bench.audit.rules import BonusFromDraft, DraftNotZeroed, EngineRule, ResidualLeftOut, TextbookRule

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def accepted(rule: type, draws: int, replacement: bool) -> float:
    """Probability that one of `draws` children of a single node is accepted."""
    q = Q.tolist()

    def go(state: object, drawn: tuple[int, ...], chance: float) -> float:
        if len(drawn) == draws:
            return 0.0
        left = 1.0 if replacement else 1.0 - sum(q[token] for token in drawn)
        total = 0.0
        for token in range(3):
            if replacement or token not in drawn:
                reach = chance * q[token] / left
                yes = min(1.0, state.offer(token))  # type: ignore[attr-defined]
                total += reach * yes
                if yes < 1.0:
                    total += go(state.rejected(token), (*drawn, token), reach * (1 - yes))  # type: ignore[attr-defined]
        return total

    return go(rule.open(P, Q, replacement), (), 1.0)


@pytest.mark.parametrize("rule", [EngineRule, TextbookRule])
@pytest.mark.parametrize(
    ("draws", "replacement", "expected"),
    [(1, False, 0.7), (2, True, 0.76), (2, False, 0.8085714285714286), (3, True, 0.808), (3, False, 1.0)],
)
def test_acceptance_of_both_rules(rule: type, draws: int, replacement: bool, expected: float) -> None:
    assert accepted(rule, draws, replacement) == pytest.approx(expected, abs=1e-12)


def constant(law: torch.Tensor) -> toy_checks.LawOf:
    return lambda output: law


@pytest.mark.parametrize("widths", [(1,), (1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("rule", [EngineRule, TextbookRule])
def test_right_rules_keep_the_law(widths: tuple[int, ...], replacement: bool, chosen: bool, rule: type) -> None:
    family = Family(rule.open, widths, replacement, chosen)
    assert distance(speculative_law(constant(P), constant(Q), 3, family), plain_law(constant(P), 3, 3)) < 1e-12


@pytest.mark.parametrize(
    "family",
    [
        Family(ResidualLeftOut.open, (1,)),
        Family(DraftNotZeroed.open, (2,)),
        Family(BonusFromDraft.open, (1,), draft_at_leaves=True),
        Family(EngineRule.open, (1,), chosen=True, claimed=True),
    ],
    ids=["residual", "zeroing", "bonus", "ratio"],
)
def test_wrong_rules_do_not(family: Family) -> None:
    p, q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    law = speculative_law(constant(p), constant(q), 2, family)
    assert sum(law.values()) == pytest.approx(1.0)
    assert distance(law, plain_law(constant(p), 4, 2)) > 0.01


def test_chi_square_known_values() -> None:
    """A fair die thrown sixty times; the probability is that of a published table."""
    law = {(face,): 1 / 6 for face in range(6)}
    counts = Counter({(0,): 8, (1,): 12, (2,): 7, (3,): 14, (4,): 9, (5,): 10})
    result = chi_square(counts, law)
    assert result.statistic == pytest.approx(3.4)
    assert result.freedom == 5
    assert result.p_value == pytest.approx(0.6386, abs=1e-3)


def test_chi_square_pools_rare_outcomes_and_forbids_impossible_ones() -> None:
    law = {(0,): 0.98, (1,): 0.01, (2,): 0.01, (3,): 0.0}
    assert chi_square(Counter({(0,): 98, (1,): 1, (2,): 1}), law).cells == 2
    assert chi_square(Counter({(0,): 98, (1,): 1, (3,): 1}), law).p_value == 0.0
    assert chi_square(Counter({(0,): 50, (1,): 50}), law).p_value < 1e-20


def test_toy_pair_tells_every_fault_apart() -> None:
    rig = toy_checks.toy_rig()
    check = toy_checks.check_node_rule(rig)
    assert check.outcome is toy_checks.Outcome.PASSED
    controls = toy_checks.rule_controls(rig)
    assert [control.caught for control in controls] == [True] * len(toy_checks.FAULTS)

"""Where dynamic trees win and where they do not: the orderings on synthetic sources (`benchmarks/dyspec.py` measures them at length)."""

from __future__ import annotations

import pytest

from paceline.bench.regimes import VOCABULARY, Regime, calibration, compare, regimes

NAMES = ("dyspec", "dyspec:value=calibrated", "4x3x2x1 tree", "chain")


@pytest.fixture(scope="module")
def sources() -> tuple[Regime, Regime, Regime]:
    return regimes()


def rates(regime: Regime) -> tuple[float, ...]:
    outcomes = compare(regime, 250, only=NAMES)
    return tuple(outcomes[name].tokens_per_call for name in NAMES)


def test_a_calibrated_draft_favours_dynamic_trees(sources: tuple[Regime, Regime, Regime]) -> None:
    dyspec, _, tree, chain = rates(sources[0])
    assert dyspec > 1.1 * tree > 1.1 * chain


def test_independent_draws_waste_nodes_on_repetitions(sources: tuple[Regime, Regime, Regime]) -> None:
    """SpecInfer's rule beside the one without replacement, on one shape."""
    with_replacement, without = (
        sum(compare(regime, 250, only=(name,))[name].tokens_per_call for regime in sources)
        for name in ("4x3x2x1 tree, with replacement", "4x3x2x1 tree")
    )
    assert without > 1.1 * with_replacement


def test_an_overconfident_draft_favours_the_fixed_tree_until_calibrated(sources: tuple[Regime, Regime, Regime]) -> None:
    dyspec, calibrated, tree, _ = rates(sources[1])
    assert dyspec < tree
    assert calibrated > 1.1 * dyspec


def test_a_draft_almost_equal_to_a_high_entropy_target_favours_the_chain(sources: tuple[Regime, Regime, Regime]) -> None:
    dyspec, calibrated, tree, chain = rates(sources[2])
    assert chain > 1.1 * tree > 1.1 * dyspec
    assert calibrated > 1.1 * dyspec


def test_calibration_tells_the_regimes_apart(sources: tuple[Regime, Regime, Regime]) -> None:
    """Acceptance of confident first draws: as promised, and far below."""
    good, bad = (
        next(row["acceptance"] for row in calibration(regime, 200) if row["to"] == 1.0 and not row["later"]) for regime in sources[:2]
    )
    assert good > 0.8
    assert bad < 0.6


def test_the_calibrated_draft_is_calibrated(sources: tuple[Regime, Regime, Regime]) -> None:
    """It says the average of the target's laws over the histories it cannot tell apart."""
    target, draft = sources[0].target.softmax(-1), sources[0].draft.softmax(-1)
    assert target.shape == (VOCABULARY,) * 3
    assert (target.mean(0) - draft.mean(0)).abs().max() < 1e-9

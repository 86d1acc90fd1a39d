"""Three pairs of synthetic sources on which dynamic and fixed trees trade places (second-order chains, 50 tokens)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from paceline.bench.chains import Outcome, Table, TableRunner, simulate
from paceline.core.sampling import Sampling
from paceline.drafting.base import Drafter
from paceline.drafting.draft_model import DraftModel, DraftModelConfig
from paceline.drafting.dyspec import DySpec, DySpecConfig
from paceline.drafting.dyspec_learning import AcceptanceCurve
from paceline.drafting.sequoia import Sequoia, SequoiaConfig
from paceline.planning.static_tree import spell

VOCABULARY = 50
NODES = 64
FLOOR = 1e-4  # mass spread over all tokens, so that every law has full support


@dataclass(frozen=True, slots=True)
class Regime:
    """A pair of sources.

    Args:
        name: for tables.
        target, draft: logits after each pair of tokens.
    """

    name: str
    target: Table
    draft: Table


def regimes(seed: int = 0, vocabulary: int = VOCABULARY) -> tuple[Regime, Regime, Regime]:
    """The three regimes: what the draft says is right, what it says is exaggerated, and what it says is nearly all there is."""
    random = torch.Generator().manual_seed(seed)
    return _calibrated(random, vocabulary), _overconfident(random, vocabulary), _high_entropy(random, vocabulary)


def _calibrated(random: torch.Generator, vocabulary: int) -> Regime:
    """Near-deterministic target; the draft cannot tell a few histories apart (more behind some tokens) and says exactly the average."""
    cells = torch.randint(vocabulary, (vocabulary, vocabulary), generator=random)
    target = _spiky(cells, vocabulary)
    draft = torch.empty_like(target)
    for last in range(vocabulary):
        group = int(torch.randint(1, 5, (1,), generator=random))
        for first in range(0, vocabulary, group):
            draft[first : first + group, last] = target[first : first + group, last].mean(0)
    return Regime("calibrated draft, near-deterministic target", target.log(), draft.log())


def _spiky(cells: torch.Tensor, vocabulary: int) -> torch.Tensor:
    laws = torch.full((vocabulary, vocabulary, vocabulary), FLOOR, dtype=torch.float64)
    laws.scatter_(-1, cells.unsqueeze(-1), 0.97)
    return laws / laws.sum(-1, keepdim=True)


def _overconfident(random: torch.Generator, vocabulary: int) -> Regime:
    """Both agree on three candidates, but the draft bets nearly everything on one of them that is as often as not the wrong one."""
    order = torch.rand(vocabulary, vocabulary, vocabulary, generator=random, dtype=torch.float64).argsort(-1)[..., :3]
    target = torch.full((vocabulary, vocabulary, vocabulary), FLOOR, dtype=torch.float64)
    draft = target.clone()
    target.scatter_(-1, order, torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64).expand_as(order))
    bets = torch.tensor([[0.97, 0.02, 0.01], [0.02, 0.97, 0.01], [0.02, 0.01, 0.97]], dtype=torch.float64)
    chosen = torch.multinomial(torch.tensor([0.45, 0.35, 0.2]), vocabulary * vocabulary, replacement=True, generator=random)
    draft.scatter_(-1, order, bets[chosen].view_as(order))
    return Regime("over-confident draft", (target / target.sum(-1, keepdim=True)).log(), (draft / draft.sum(-1, keepdim=True)).log())


def _high_entropy(random: torch.Generator, vocabulary: int) -> Regime:
    """A target that could go on in many ways, and a draft that knows nearly all of them."""
    target = torch.randn(vocabulary, vocabulary, vocabulary, generator=random, dtype=torch.float64)
    noise = torch.randn(vocabulary, vocabulary, vocabulary, generator=random, dtype=torch.float64)
    return Regime("draft almost equal to a high-entropy target", target, target + 0.35 * noise)


Contender = Callable[[TableRunner], Drafter]


def contenders(regime: Regime, measure: int, seed: int) -> dict[str, Contender]:
    """Methods of 64 nodes each; the optimal static tree is planned from acceptance measured on `measure` tokens of another seed."""

    def dyspec(**options: object) -> Contender:
        return lambda runner: DySpec(DySpecConfig(**options), runner, frozenset())  # type: ignore[arg-type]  # checked by the config

    def planned(runner: TableRunner) -> Sequoia:
        scout = Sequoia(SequoiaConfig(NODES), TableRunner(regime.draft), frozenset())
        simulate(regime.target, scout, Sampling(temperature=1.0, seed=seed + 1), tokens=measure)
        return Sequoia(SequoiaConfig(NODES, acceptance=spell(scout.measured.rates())), runner, frozenset())

    return {
        "dyspec": dyspec(),
        "dyspec:mode=budget": dyspec(mode="budget"),
        "dyspec:value=calibrated": dyspec(value="calibrated"),
        "dyspec:mode=budget,value=calibrated": dyspec(mode="budget", value="calibrated"),
        "4x3x2x1 tree": lambda runner: DraftModel(DraftModelConfig(4, "4x3x2x1"), runner, frozenset()),
        "4x3x2x1 tree, with replacement": lambda runner: DraftModel(DraftModelConfig(4, "4x3x2x1", replacement=True), runner, frozenset()),
        "4x4x2 tree": lambda runner: DraftModel(DraftModelConfig(3, "4x4x2"), runner, frozenset()),
        "sequoia, measured": planned,
        "chain": lambda runner: DraftModel(DraftModelConfig(32), runner, frozenset()),
    }


def compare(regime: Regime, tokens: int, seed: int = 0, only: tuple[str, ...] = ()) -> dict[str, Outcome]:
    """Every contender on one regime, sampling at temperature 1."""
    makers = contenders(regime, max(200, tokens // 4), seed)
    sampling = Sampling(temperature=1.0, seed=seed)
    return {
        name: simulate(regime.target, make(TableRunner(regime.draft)), sampling, tokens=tokens)
        for name, make in makers.items()
        if not only or name in only
    }


def calibration(regime: Regime, tokens: int, seed: int = 0) -> list[dict[str, float]]:
    """Acceptance against draft probability, in bins, of first draws (`later` 0) and later siblings (1) while DySpec decodes."""
    drafter = DySpec(DySpecConfig(value="calibrated"), TableRunner(regime.draft), frozenset())
    drafter.curve = AcceptanceCurve(forget=1.0)
    simulate(regime.target, drafter, Sampling(temperature=1.0, seed=seed), tokens=tokens)
    return drafter.curve.table()

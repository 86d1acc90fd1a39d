"""The mixture of experts equals its definition written out row by row, drops nothing, and keeps rows apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.models.config import FeedForwardSpec
from paceline.models.moe import MoE

WIDTH, EXPERTS = 12, 6


def _moe(active: int = 2, normalise: bool = True, seed: int = 0) -> MoE:
    generator = torch.Generator().manual_seed(seed)
    moe = MoE(FeedForwardSpec(width=10, experts=EXPERTS, active=active, normalise=normalise), WIDTH).double()
    for weight in moe.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.5)
    return moe


def _rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _by_definition(moe: MoE, row: Tensor) -> Tensor:
    probs = torch.softmax(moe.router.weight @ row, -1).tolist()
    chosen = sorted(range(EXPERTS), key=lambda e: (-probs[e], e))[: moe.spec.active]
    total = sum(probs[e] for e in chosen) if moe.spec.normalise else 1.0
    out = torch.zeros(WIDTH, dtype=torch.float64)
    for e in chosen:
        gate, up = moe.gate_up[e][:10] @ row, moe.gate_up[e][10:] @ row
        out += probs[e] / total * (moe.down[e] @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("active", [1, 2, EXPERTS])
def test_definition(active: int, normalise: bool) -> None:
    moe, rows = _moe(active, normalise), _rows(23)
    expected = torch.stack([_by_definition(moe, row) for row in rows])
    torch.testing.assert_close(moe(rows), expected, rtol=0, atol=1e-12)


def test_no_row_is_dropped_when_all_choose_one_expert() -> None:
    moe = _moe(1)
    moe.router.weight.zero_()
    moe.router.weight[3] = 1.0
    rows = _rows(64).abs()
    torch.testing.assert_close(moe(rows), torch.stack([_by_definition(moe, row) for row in rows]), rtol=0, atol=1e-12)


def test_rows_do_not_depend_on_each_other() -> None:
    moe, rows = _moe(), _rows(17)
    together = moe(rows)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(moe(rows[order]), together[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([moe(row[None]) for row in rows]), together, rtol=0, atol=1e-12)


def test_ties_go_to_the_lower_index() -> None:
    moe = _moe(2)
    moe.router.weight.zero_()
    _, experts = moe.route(_rows(5))
    assert experts.tolist() == [[0, 1]] * 5


def test_only_chosen_experts_are_touched() -> None:
    """An expert nobody chose may hold anything."""
    moe, rows = _moe(), _rows(2)
    expected = moe(rows)
    idle = set(range(EXPERTS)) - set(moe.route(rows)[1].flatten().tolist())
    assert idle
    for expert in idle:
        moe.down[expert] = float("nan")
    assert torch.equal(moe(rows), expected)


def test_routing_is_float32_in_half_precision() -> None:
    weights, _ = _moe().to(torch.bfloat16).route(_rows(4).to(torch.bfloat16))
    assert weights.dtype is torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(4), rtol=0, atol=1e-6)

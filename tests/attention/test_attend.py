"""Attention over plans: every route through it equals a plain softmax written out, and bit-exact shapes keep a row's bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from paceline.attention.attend import attend, log_sum_exp
from paceline.attention.plan import AttentionPlan, Exactness
from paceline.core.batch import Segment

HEADS, KV_HEADS, DIM = 6, 2, 8


@dataclass
class View:
    """A memory at given physical runs."""

    length: int
    held: Sequence[tuple[int, int]]

    def runs(self, stop: int) -> list[tuple[int, int]]:
        out, left = [], stop
        for low, high in self.held:
            if left > 0:
                out.append((low, min(high, low + left)))
                left -= high - low
        return out


def slots_of(view: View, stop: int) -> list[int]:
    return [slot for low, high in view.runs(stop) for slot in range(low, high)]


def pools(slots: int = 4000, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(slots, KV_HEADS, DIM, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(slots, KV_HEADS, DIM, generator=generator, dtype=torch.float64).to(dtype),
    )


def reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Sequence[Segment],
    positions: Sequence[int],
    window: int | None,
    cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Row by row, head by head: softmax over the visible slots. Returns outputs and log-sum-exp."""
    out, lse, start = torch.empty_like(query), torch.empty(query.shape[:2], dtype=query.dtype), 0
    for segment in segments:
        context, span = segment.memory.length, segment.span
        slots = slots_of(segment.memory, context + span)
        offsets = list(range(segment.rows)) if segment.offsets is None else list(segment.offsets)
        place = dict(zip(offsets, positions[start : start + segment.rows], strict=True))
        if segment.scratch_positions is not None:
            place = dict(enumerate(segment.scratch_positions))
        for row in range(segment.rows):
            seen = offsets[: row + 1] if segment.mask is None else segment.mask[row].nonzero()[:, 0].tolist()
            visible = [(slots[at], at) for at in range(context)] + [(slots[context + at], place[at]) for at in seen]
            if window is not None:
                visible = [(slot, position) for slot, position in visible if position > positions[start + row] - window]
            index = [slot for slot, _ in visible]
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                score = keys[index, group] @ query[start + row, head] * 0.3
                if cap is not None:
                    score = torch.tanh(score / cap) * cap
                out[start + row, head] = torch.softmax(score, 0) @ values[index, group]
                lse[start + row, head] = torch.logsumexp(score, 0)
        start += segment.rows
    return out, lse


TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
CASES: dict[str, tuple[list[Segment], list[int]]] = {
    "one row": ([Segment(View(9, [(5, 40)]), 1)], [9]),
    "prefill": ([Segment(View(0, [(5, 40)]), 7)], list(range(7))),
    "chunk": ([Segment(View(4, [(5, 40)]), 5)], list(range(4, 9))),
    "tree": ([Segment(View(6, [(5, 40)]), 4, TREE)], [6, 7, 8, 7]),
    "scattered runs": ([Segment(View(6, [(50, 53), (5, 40)]), 3)], [6, 7, 8]),
    "offsets": ([Segment(View(6, [(5, 40)]), 2, offsets=[1, 3])], [7, 8]),
    "grown tree": (
        [Segment(View(6, [(5, 40)]), 1, torch.tensor([[1, 0, 1, 1]], dtype=torch.bool), [3], [6, 7, 7, 8])],
        [8],
    ),
    "lanes, one row each": ([Segment(View(n, [(100 * n, 100 * n + 60)]), 1) for n in (3, 1, 2)], [3, 1, 2]),
    "lanes, ragged": (
        [Segment(View(6, [(200, 240)]), 4, TREE), Segment(View(2, [(100, 140)]), 1), Segment(View(0, [(300, 340)]), 3)],
        [6, 7, 8, 7, 2, 0, 1, 2],
    ),
    "uneven spacing": (
        [Segment(View(6, [(200, 240)]), 2), Segment(View(2, [(90, 140)]), 1), Segment(View(3, [(300, 340)]), 1)],
        [6, 7, 2, 3],
    ),
}


@pytest.mark.parametrize("exact", [None, Exactness()])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_route_equals_the_definition(case: str, window: int | None, cap: float | None, exact: Exactness | None) -> None:
    segments, positions = CASES[case]
    keys, values = pools()
    query = torch.randn(len(positions), HEADS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plan = AttentionPlan(segments, positions, query.dtype, query.device, exact)
    expected, lse = reference(query, keys, values, segments, positions, window, cap)
    found = attend(query, keys, values, plan, scale=0.3, window=window, softcap=cap)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(log_sum_exp(query, keys, plan, scale=0.3, window=window, softcap=cap), lse, atol=1e-12, rtol=0)


def test_a_wrong_mask_is_noticed() -> None:
    """The negative control: were siblings visible to each other, the comparison above would fail."""
    segments, positions = CASES["tree"]
    leaky = [Segment(segments[0].memory, 4, torch.ones(4, 4, dtype=torch.bool).tril())]
    keys, values = pools()
    query = torch.randn(4, HEADS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected, _ = reference(query, keys, values, segments, positions, None, None)
    found = attend(query, keys, values, AttentionPlan(leaky, positions, query.dtype, query.device), scale=0.3)
    assert (found - expected).abs().max() > 1e-3


def test_even_spacing_uses_one_view_and_uneven_does_not() -> None:
    for case, laned in (("lanes, one row each", True), ("lanes, ragged", True), ("uneven spacing", False), ("tree", False)):
        segments, positions = CASES[case]
        plan = AttentionPlan(segments, positions, torch.float64, torch.device("cpu"))
        assert (plan.lanes(None) is not None) == laned, case


def test_writes_follow_the_runs() -> None:
    view = View(2, [(7, 10), (30, 40)])
    plan = AttentionPlan([Segment(view, 4)], range(2, 6), torch.float32, torch.device("cpu"))
    assert isinstance(plan.write, Tensor)
    assert plan.write.tolist() == [9, 30, 31, 32]
    adjacent = AttentionPlan([Segment(View(1, [(7, 20)]), 3)], range(1, 4), torch.float32, torch.device("cpu"))
    assert adjacent.write == slice(8, 11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bit_exact_shapes_keep_a_rows_bits(dtype: torch.dtype) -> None:
    """A row decided alone, and the same row inside a chain, see bitwise the same attention output."""
    keys, values = pools(dtype=dtype)
    query = torch.randn(12, HEADS, DIM, generator=torch.Generator().manual_seed(3)).to(dtype)
    for context in (1, 63, 200, 511, 700):
        held = [(5, 2000)]
        many = AttentionPlan([Segment(View(context, held), 12)], range(context, context + 12), dtype, torch.device("cpu"), Exactness())
        together = attend(query, keys, values, many, scale=0.3)
        for row in (0, 5, 11):
            alone = AttentionPlan([Segment(View(context + row, held), 1)], [context + row], dtype, torch.device("cpu"), Exactness())
            assert torch.equal(attend(query[row : row + 1], keys, values, alone, scale=0.3)[0], together[row])

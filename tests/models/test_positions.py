"""Positions without rotation, against the tables and buckets that released models were trained with."""

from __future__ import annotations

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from paceline.core.batch import Segment
from paceline.models.config import PositionSpec, RelativeSpec
from paceline.models.positions import LearnedPositions, RelativeBias, SinusoidalPositions, bucket


@pytest.mark.parametrize("width", [16, 18, 21])
def test_sinusoids_are_the_stored_ones(width: int) -> None:
    expected = MarianSinusoidalPositionalEmbedding(200, width).create_weight()
    found = SinusoidalPositions(PositionSpec("sinusoidal"), width)(torch.arange(200), torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_learned_positions_begin_at_their_offset() -> None:
    table = LearnedPositions(PositionSpec("learned", rows=6, offset=2), 1)
    table.weight.copy_(torch.arange(6.0)[:, None])
    assert table(torch.tensor([0, 3]), torch.float32).flatten().tolist() == [2.0, 5.0]


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (12, 20), (8, 64), (64, 1000)])
def test_buckets_are_those_of_t5(buckets: int, longest: int, both_sides: bool) -> None:
    distance = torch.arange(-1200, 1200)
    expected = T5Attention._relative_position_bucket(distance, both_sides, buckets, longest)
    spec = RelativeSpec(1, buckets, longest, both_sides)
    assert torch.equal(bucket(distance, spec), expected)
    beyond = distance.clamp(-longest, longest)  # what lies further shares a bucket, so that a table of this length is enough
    assert torch.equal(bucket(beyond, spec), expected)


class View:
    """Five committed tokens."""

    length = 5

    def runs(self, stop: int) -> list[tuple[int, int]]:
        return [(0, stop)]


def test_a_bias_counts_positions_not_slots() -> None:
    """Two siblings stand in neighbouring slots at one position."""
    from paceline.attention.plan import AttentionPlan

    bias = RelativeBias(RelativeSpec(heads=2, buckets=8, longest=16, both_sides=False))
    bias.weight.copy_(torch.arange(8.0)[:, None] + torch.tensor([0.0, 100.0]))
    mask = torch.tensor([[True, False, False], [True, True, False], [True, False, True]])
    plan = AttentionPlan([Segment(View(), 3, mask)], [5, 6, 6], torch.float32, torch.device("cpu"))
    (found,) = bias(plan)
    assert found.shape == (2, 3, 8)
    assert found[0, 1].tolist() == [5.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0, float("-inf")]
    assert torch.equal(found[0, 1, :6], found[0, 2, :6])
    assert found[0, 2, 7] == 0.0
    assert torch.equal(found[1, 0, :6], found[0, 0, :6] + 100.0)

"""Block-sparse attention: three kernels agree, patterns keep what they say and the best of it, and the full pattern is dense attention."""

from __future__ import annotations

from itertools import combinations
from math import ceil

import pytest
import torch
from torch import Tensor

from paceline.attention.sparse import KERNELS, Kernel, block_sparse, kernel_for
from paceline.attention.sparse_pattern import BlockPattern, Select, block_scores, choose_pattern

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

HEADS, DIM = 4, 16
SCALE = DIM**-0.5


def drawn(length: int, kv_heads: int = HEADS, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, kv_heads, kv_heads)
    query, keys, values = (torch.randn(length, heads, DIM, generator=generator, dtype=torch.float64) for heads in shapes)
    return (3 * query).to(dtype), keys.to(dtype), values.to(dtype)


def plainly(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Attention written down once more, in float64."""
    keys, values = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (keys, values))
    scores = torch.einsum("ihd,jhd->hij", query.double(), keys.double()) * SCALE
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, values.double())


def pattern_of(query: Tensor, keys: Tensor, prompt: int, tile: int = 8, keep: float = 0.4, select: Select = "isolated") -> BlockPattern:
    return choose_pattern(query, keys, prompt, tile=tile, keep=keep, scale=SCALE, select=select)


@pytest.mark.parametrize("select", ["isolated", "plain", "reference"])
@pytest.mark.parametrize(("length", "kv_heads"), [(64, 4), (61, 4), (61, 2), (7, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_kernels_agree(length: int, kv_heads: int, dtype: torch.dtype, tolerance: float, select: Select) -> None:
    parts = drawn(length, kv_heads, dtype)
    pattern = pattern_of(parts[0], parts[1], 20, select=select)
    expected = plainly(*parts, pattern.expanded())
    for name in KERNELS:
        assert (block_sparse(*parts, pattern, SCALE, name) - expected).abs().max() < tolerance, name
    if length > 8:  # the control: another pattern gives something else
        kept = pattern.kept.roll(1, -1)
        assert (block_sparse(*parts, BlockPattern.of(kept, 8, length), SCALE) - expected).abs().max() > 0.05


@pytest.mark.parametrize("kernel", KERNELS)
def test_lists_of_different_length(kernel: Kernel) -> None:
    """Fillings of the shorter ones are read by nobody."""
    parts = drawn(44, 2)
    kept = torch.rand(HEADS, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    kept |= torch.eye(6, dtype=torch.bool)
    pattern = BlockPattern.of(kept, 8, 44)
    assert pattern.real is not None
    assert (block_sparse(*parts, pattern, SCALE, kernel) - plainly(*parts, pattern.expanded())).abs().max() < 1e-5


def test_many_blocks_are_gathered_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = drawn(75, 2, torch.float64)
    pattern = pattern_of(parts[0], parts[1], 32)
    whole = block_sparse(*parts, pattern, SCALE, "gathered")
    monkeypatch.setattr("paceline.attention.sparse.GATHERED_ELEMENTS", 1)
    assert (block_sparse(*parts, pattern, SCALE, "gathered") - whole).abs().max() < 1e-12


@pytest.mark.parametrize("length", [5, 8, 30, 64])
def test_everything_kept_is_dense_attention(length: int) -> None:
    parts = drawn(length, dtype=torch.float64)
    pattern = pattern_of(parts[0], parts[1], 3, keep=1.0)
    assert pattern.density == 1
    everything = torch.ones(HEADS, length, length, dtype=torch.bool)
    assert (block_sparse(*parts, pattern, SCALE) - plainly(*parts, everything)).abs().max() < 1e-12
    if length <= 8:  # one block: nothing to leave out
        assert pattern_of(parts[0], parts[1], 3, keep=0.1).density == 1


@pytest.mark.parametrize("length", [64, 61])
def test_scores_are_means_over_real_entries(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = drawn(length, 2)
    expanded = keys.repeat_interleave(2, 1)
    weights = (torch.einsum("ihd,jhd->hij", query, expanded) * SCALE).softmax(-1)
    blocks = -(-length // 8)
    expected = torch.stack(
        [torch.stack([weights[:, r * 8 : r * 8 + 8, k * 8 : k * 8 + 8].mean((1, 2)) for k in range(blocks)], -1) for r in range(blocks)], 1
    )
    assert (block_scores(query, keys, 8, SCALE) - expected).abs().max() < 1e-6
    monkeypatch.setattr("paceline.attention.sparse_pattern.SCORE_ELEMENTS", 1)
    assert (block_scores(query, keys, 8, SCALE) - expected).abs().max() < 1e-6
    behind = (torch.einsum("ihd,jhd->hij", query, expanded[16:]) * SCALE).softmax(-1)
    found = block_scores(query, keys, 8, SCALE, start=16)
    assert found[..., :2].abs().max() == 0
    assert (found[:, 0, 2] - behind[:, :8, :8].mean((1, 2))).abs().max() < 1e-6
    # filling up with zeros instead would count the last block for less
    if length % 8:
        assert ((weights[:, :8, -(length % 8) :].sum((1, 2)) / 64 - expected[:, 0, -1]).abs() > 1e-6).all()
    assert len(values) == length


@pytest.mark.parametrize(("length", "prompt", "keep"), [(64, 16, 0.3), (61, 20, 0.5), (61, 60, 0.3), (64, 0, 0.3), (80, 40, 0.01)])
def test_numbers_of_kept_blocks(length: int, prompt: int, keep: float) -> None:
    query, keys, _ = drawn(length)
    pattern = pattern_of(query, keys, prompt, keep=keep)
    blocks = ceil(length / 8)
    answer = sum(block * 8 >= prompt for block in range(blocks)) or 1
    first = blocks - answer
    share = [max(1, ceil(keep * group - 1e-9)) if group else 0 for group in (first, answer)]
    assert (pattern.kept[..., :first].sum(-1) == share[0]).all()
    assert (pattern.kept[..., first:].sum(-1) == share[1]).all()
    assert pattern.density == pytest.approx(sum(share) / blocks)
    assert pattern.real is None
    assert any(not torch.equal(pattern.kept[0], pattern.kept[head]) for head in range(1, HEADS)) or pattern.density == 1


def test_the_best_are_kept() -> None:
    """Among all choices with the same numbers of each group, none has a larger score, for any block of queries."""
    query, keys, _ = drawn(64)
    pattern = pattern_of(query, keys, 24, keep=0.5)
    scores = block_scores(query, keys, 8, SCALE)
    for low, high in ((0, 3), (3, 8)):
        count = int(pattern.kept[0, 0, low:high].sum())
        best = torch.stack([scores[..., list(chosen)].sum(-1) for chosen in combinations(range(low, high), count)]).amax(0)
        own = (scores * pattern.kept)[..., low:high].sum(-1)
        assert (own - best).abs().max() < 1e-6
        other = torch.stack([scores[..., list(chosen)].sum(-1) for chosen in combinations(range(low, high), count)]).amin(0)
        assert (own > other).any()


def test_equal_scores_keep_the_first() -> None:
    zeros = torch.zeros(32, HEADS, DIM)
    pattern = pattern_of(zeros, zeros, 16, keep=0.5)
    assert torch.equal(pattern.kept[0, 0], torch.tensor([True, False, True, False]))


def test_selections_differ_as_described() -> None:
    """Isolated selection keeps blocks of the answer that the best of all would not; released code keeps one more of each."""
    query, keys, _ = drawn(80)
    keys[40:] -= 2 * query.mean(0)  # whose keys nobody likes
    isolated, plain, released = (pattern_of(query, keys, 40, keep=0.4, select=select) for select in ("isolated", "plain", "reference"))
    assert (plain.kept.sum(-1) == 4).all()
    assert (released.kept[..., 5:].sum(-1) == 3).all()
    assert isolated.kept[..., 5:].sum() > plain.kept[..., 5:].sum()
    assert (pattern_of(query, keys, 40, keep=1.0, select="reference").density) == 1


def test_heads_that_share_keys_may_share_a_pattern() -> None:
    """The union of what each would read; its lists differ in length, and every kernel follows it."""
    query, keys, values = drawn(61, 2)
    apart = pattern_of(query, keys, 20)
    joint = choose_pattern(query, keys, 20, tile=8, keep=0.4, scale=SCALE, shared=True)
    assert torch.equal(joint.kept.view(2, 2, 8, 8)[:, 0], apart.kept.view(2, 2, 8, 8).any(1))
    assert torch.equal(joint.kept[0], joint.kept[1])
    assert joint.density > apart.density
    for kernel in KERNELS:
        assert (block_sparse(query, keys, values, joint, SCALE, kernel) - plainly(query, keys, values, joint.expanded())).abs().max() < 1e-5


def test_patterns_that_look_at_no_attention() -> None:
    """As dense as isolated selection, whatever queries and keys are: the nearest blocks, or a tenth of them from the beginning."""
    query, keys, _ = drawn(320)
    window, sinks = (pattern_of(query, keys, 100, keep=0.3, select=select) for select in ("window", "sinks"))
    assert window.density == sinks.density == pattern_of(query, keys, 100, keep=0.3).density
    count = int(window.kept[0, 0].sum())
    assert torch.equal(window.kept[0, 20].nonzero()[:, 0], torch.arange(20 - count // 2, 20 - count // 2 + count))
    assert sinks.kept[..., : max(1, round(count / 10))].all()
    assert sinks.kept[0, 20].sum() == count
    assert torch.equal(window.kept[0], window.kept[3])


def test_patterns_of_a_canvas_cut_short() -> None:
    query, keys, values = drawn(61)
    pattern = pattern_of(query, keys, 20)
    for length in (61, 57, 40, 37, 3):
        cut = pattern.cut(length)
        blocks = ceil(length / 8)
        assert cut.kept.shape == (HEADS, blocks, blocks)
        assert cut.kept.any(-1).all()
        unchanged = pattern.kept[:, :blocks, :blocks]
        assert torch.equal(cut.kept & unchanged, unchanged)
        parts = query[:length], keys[:length], values[:length]
        assert (block_sparse(*parts, cut, SCALE) - plainly(*parts, cut.expanded())).abs().max() < 1e-5


def test_sizes_and_kernels_are_told() -> None:
    query, keys, _ = drawn(64)
    pattern = pattern_of(query, keys, 16)
    assert pattern.bytes == pattern.kept.numel() + 8 * (pattern.index.numel() + pattern.counts.numel())
    assert kernel_for(torch.device("cpu")) == "gathered"
    assert kernel_for(torch.device("cuda")) == "flex"

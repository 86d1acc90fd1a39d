"""Which blocks of keys a block of queries reads, head by head: chosen once from the attention of one forward (SparseD).

Source: SparseD (arXiv 2509.24014), sec. 4. Block scores are means over real rows and keys, so that a last, partial block counts in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Select = Literal["isolated", "plain", "reference", "window", "sinks"]
SINKS = 0.1  # share of the kept blocks that come from the beginning
SCORE_ELEMENTS = 1 << 22  # attention weights held at a time while blocks are scored
ROUNDING = 1e-9  # of shares like 0.3 * 10


@dataclass(frozen=True, slots=True)
class BlockPattern:
    """Kept blocks of one layer.

    Args:
        kept: whether a query block of a head reads a key block; every one reads at least one.
        tile: positions per block.
        length: positions; the last block may be partial.
        index: the kept key blocks, ascending, filled up to the largest number with others.
        real: which entries of `index` are kept ones; `None` where all are.
        counts: how many they are.
    """

    kept: Bool[Tensor, "heads blocks blocks"]
    tile: int
    length: int
    index: Int[Tensor, "heads blocks most"]
    real: Bool[Tensor, "heads blocks most"] | None
    counts: Int[Tensor, "heads blocks"]

    @classmethod
    def of(cls, kept: Bool[Tensor, "heads blocks blocks"], tile: int, length: int) -> BlockPattern:
        """From the kept blocks alone."""
        counts = kept.sum(-1).contiguous()
        most = int(counts.max())
        index = kept.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :most].contiguous()
        real = torch.arange(most, device=kept.device) < counts[..., None]
        return cls(kept, tile, length, index, None if bool(real.all()) else real, counts)

    @property
    def density(self) -> float:
        """Share of block pairs that are kept."""
        return float(self.kept.float().mean())

    @property
    def bytes(self) -> int:
        """Memory of what is held."""
        held = (self.kept, self.index, self.real, self.counts)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def cut(self, length: int) -> BlockPattern:
        """The pattern of a canvas that has become shorter; a block that is cut in two stays, and nobody is left with nothing to read."""
        if length == self.length:
            return self
        blocks = -(-length // self.tile)
        kept = self.kept[:, :blocks, :blocks].clone()
        kept |= ~kept.any(-1, keepdim=True) & torch.eye(blocks, dtype=torch.bool, device=kept.device)
        return BlockPattern.of(kept, self.tile, length)

    def expanded(self) -> Bool[Tensor, "heads length length"]:
        """Position by position."""
        wide = self.kept.repeat_interleave(self.tile, 1).repeat_interleave(self.tile, 2)
        return wide[:, : self.length, : self.length]


def block_scores(
    query: Float[Tensor, "length heads head_dim"], keys: Float[Tensor, "length kv_heads head_dim"], tile: int, scale: float, start: int = 0
) -> Float[Tensor, "heads blocks blocks"]:
    """Mean attention of every query block to every key block, a few query blocks at a time; zero for blocks before `start`.

    Args:
        query, keys: rotated.
        tile: positions per block.
        scale: of scores; the model's own.
        start: leave out keys before this one, a multiple of `tile`.
    """
    length, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    blocks, wide = -(-length // tile), torch.promote_types(query.dtype, torch.float32)
    sizes = torch.full((blocks,), float(tile), dtype=wide, device=query.device)
    sizes[-1] = length - (blocks - 1) * tile
    seen = keys[start:].to(wide).permute(1, 2, 0)  # kv_heads, head_dim, keys
    step = max(1, SCORE_ELEMENTS // (heads * tile * length))
    found = torch.zeros(heads, blocks, blocks, dtype=wide, device=query.device)
    for first in range(0, blocks, step):
        rows = query[first * tile : (first + step) * tile].to(wide)
        count, own = len(rows), sizes[first : first + step]
        folded = rows.view(count, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
        weights = (folded @ seen * scale).softmax(-1).view(heads, count, -1)
        weights = F.pad(weights, (0, blocks * tile - length, 0, len(own) * tile - count))
        pooled = weights.view(heads, len(own), tile, -1, tile).sum((2, 4))
        found[:, first : first + step, start // tile :] = pooled / own[:, None] / sizes[start // tile :]
    return found


def choose_pattern(
    query: Float[Tensor, "length heads head_dim"],
    keys: Float[Tensor, "length kv_heads head_dim"],
    prompt: int,
    *,
    tile: int,
    keep: float,
    scale: float,
    select: Select = "isolated",
    shared: bool = False,
) -> BlockPattern:
    """The pattern of one layer of a canvas.

    Args:
        query, keys: of all its positions, rotated.
        prompt: length of the prompt. Blocks that begin behind it are of the answer, the others of the prompt; where no block does, the last
            one stands for the answer.
        tile: positions per block.
        keep: share of blocks that every query block reads.
        scale: of scores.
        select: the best blocks of the prompt and the best of the answer, so many of each (`isolated`); the best of all (`plain`); or as
            released code selects (`reference`: one block more, and those of the answer by weights among themselves). Two that look at no
            attention, to compare with: the nearest blocks (`window`), or some of the first ones and the nearest (`sinks`, StreamingLLM).
        shared: query heads of one key head read what any of them would, for kernels that hold one pattern per key head.
    """
    length, heads = query.shape[:2]
    blocks = -(-length // tile)
    first = min(-(-prompt // tile), blocks - 1)  # block of the answer
    total = _share(first, keep) + _share(blocks - first, keep)  # of equal density, whatever is compared
    if select in ("window", "sinks"):
        kept = _band(blocks, total, sinks=select == "sinks").to(query.device)
        return BlockPattern.of(kept.expand(heads, -1, -1).contiguous(), tile, length)
    scores = block_scores(query, keys, tile, scale)
    if select == "reference":
        kept = _best(scores, _released(blocks, keep))
        kept[..., first:] = _best(block_scores(query, keys, tile, scale, first * tile)[..., first:], _released(blocks - first, keep))
    elif select == "plain":
        kept = _best(scores, total)
    else:
        parts = scores[..., :first], scores[..., first:]
        kept = torch.cat([_best(part, _share(part.shape[-1], keep)) for part in parts if part.shape[-1]], -1)
    if shared:
        groups = heads // keys.shape[1]
        kept = kept.view(-1, groups, blocks, blocks).any(1).repeat_interleave(groups, 0)
    return BlockPattern.of(kept, tile, length)


def _share(blocks: int, keep: float) -> int:
    return min(blocks, max(1, ceil(keep * blocks - ROUNDING)))


def _released(blocks: int, keep: float) -> int:
    return min(blocks, floor(keep * blocks + ROUNDING) + 1)


def _band(blocks: int, count: int, *, sinks: bool) -> Bool[Tensor, "1 blocks blocks"]:
    """The nearest key blocks of every query block, the earlier of two first; with sinks, the first key blocks before them."""
    at = torch.arange(blocks)
    nearness = -(at[:, None] - at).abs().double()[None]
    if sinks:
        nearness[..., : max(1, round(count * SINKS))] = 1.0
    return _best(nearness, count)


def _best(scores: Float[Tensor, "heads blocks candidates"], count: int) -> Bool[Tensor, "heads blocks candidates"]:
    """Marks the largest; equal ones in ascending order."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)

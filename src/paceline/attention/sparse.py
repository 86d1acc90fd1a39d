"""Attention that reads the kept blocks of a pattern: gathered blocks on a CPU, FlexAttention on a GPU, and a masked form to check both."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paceline.attention.sparse_pattern import BlockPattern

Kernel = Literal["masked", "gathered", "flex"]
GATHERED_ELEMENTS = 1 << 19  # keys held at a time: small enough to stay in a cache between the copy and its use


def kernel_for(device: torch.device) -> Kernel:
    """Which one runs on a device."""
    return "flex" if device.type == "cuda" else "gathered"


def block_sparse(
    query: Float[Tensor, "length heads head_dim"],
    keys: Float[Tensor, "length kv_heads head_dim"],
    values: Float[Tensor, "length kv_heads head_dim"],
    pattern: BlockPattern,
    scale: float,
    kernel: Kernel | None = None,
) -> Float[Tensor, "length heads head_dim"]:
    """Softmax over the kept keys alone, every head by its own pattern.

    Args:
        query, keys, values: of all positions, rotated.
        pattern: of this layer, for this length.
        scale: of scores.
        kernel: the device's own unless given.
    """
    return KERNELS[kernel or kernel_for(query.device)](query, keys, values, pattern, scale)


def masked(query: Tensor, keys: Tensor, values: Tensor, pattern: BlockPattern, scale: float) -> Tensor:
    """Everything is computed, and what is not kept is hidden: as slow as dense attention, and slower."""
    q, k, v = (part.transpose(0, 1)[None] for part in (query, keys, values))
    grouped = query.shape[1] != keys.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.expanded()[None], scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)


def gathered(query: Tensor, keys: Tensor, values: Tensor, pattern: BlockPattern, scale: float) -> Tensor:
    """For each query block of a head, its kept key blocks are laid side by side; then attention is dense over those."""
    length, heads, head_dim = query.shape
    tile, (_, blocks, most) = pattern.tile, pattern.index.shape
    groups = heads // keys.shape[1]
    queries = _tiles(query, blocks, tile)
    key_tiles, value_tiles = (_tiles(part, blocks, tile).view(-1, tile * head_dim) for part in (keys, values))
    head = torch.arange(heads, device=query.device) // groups * blocks
    where = (pattern.index + head[:, None, None]).view(-1, most)
    hidden = _hidden(pattern, query.dtype)
    out = torch.empty_like(queries)
    step = max(torch.get_num_threads(), GATHERED_ELEMENTS // (most * tile * head_dim))
    for low in range(0, len(where), step):
        chosen = where[low : low + step]
        shape = (1, len(chosen), most * tile, head_dim)
        key, value = (part.index_select(0, chosen.view(-1)).view(shape) for part in (key_tiles, value_tiles))
        bias = None if hidden is None else hidden[None, low : low + step]
        out[low : low + step] = F.scaled_dot_product_attention(queries[None, low : low + step], key, value, attn_mask=bias, scale=scale)[0]
    return out.view(heads, blocks * tile, head_dim)[:, :length].transpose(0, 1)


def _tiles(part: Float[Tensor, "length heads head_dim"], blocks: int, tile: int) -> Float[Tensor, "tiles tile head_dim"]:
    """Blocks of one head after the other, the last one filled up."""
    whole = F.pad(part, (0, 0, 0, 0, 0, blocks * tile - len(part)))
    return whole.transpose(0, 1).contiguous().view(-1, tile, part.shape[2])


def _hidden(pattern: BlockPattern, dtype: torch.dtype) -> Float[Tensor, "tiles 1 keys"] | None:
    """Added to scores of gathered keys: hides the fillings of the last block, and of lists shorter than the longest."""
    if pattern.real is None and pattern.length % pattern.tile == 0:
        return None
    unit = torch.arange(pattern.tile, device=pattern.index.device)
    visible = pattern.index[..., None] * pattern.tile + unit < pattern.length
    if pattern.real is not None:
        visible &= pattern.real[..., None]
    visible = visible.flatten(2).flatten(0, 1)[:, None]
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def flex(query: Tensor, keys: Tensor, values: Tensor, pattern: BlockPattern, scale: float) -> Tensor:
    """FlexAttention over the pattern's own blocks; compiled on a GPU, where it skips what is not kept.

    Untested on a GPU. Lengths are filled up to whole blocks, so that no mask is asked about positions outside its table.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length, tile, blocks = pattern.length, pattern.tile, pattern.kept.shape[-1]
    kept = pattern.kept
    whole = kept.clone()
    if length % tile:
        whole[..., -1] = False

    def visible(_: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return kept[head, row // tile, key // tile] & (key < length)

    mask = BlockMask.from_kv_blocks(*_listed(kept & ~whole), *_listed(whole), BLOCK_SIZE=tile, mask_mod=visible)
    q, k, v = (F.pad(part, (0, 0, 0, 0, 0, blocks * tile - length)).transpose(0, 1)[None] for part in (query, keys, values))
    grouped = query.shape[1] != keys.shape[1]
    out = _flex(query.is_cuda)(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
    found: Tensor = out[0, :, :length].transpose(0, 1)
    return found


def _listed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Number and list of kept blocks, as FlexAttention wants them."""
    order = kept.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
    return kept.sum(-1, dtype=torch.int32)[None], order.to(torch.int32)[None]


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attention: Callable[..., Any] = flex_attention
    return torch.compile(attention) if compiled else attention


KERNELS: dict[Kernel, Callable[[Tensor, Tensor, Tensor, BlockPattern, float], Tensor]] = {
    "masked": masked,
    "gathered": gathered,
    "flex": flex,
}

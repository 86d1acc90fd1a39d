"""Queries meet memory: scaled dot-product attention over the reaches of a plan, one call per segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paceline.attention.plan import AttentionPlan, Lanes, Reach
from paceline.core.errors import UsageError


def attend(
    query: Float[Tensor, "rows heads head_dim"],
    keys: Float[Tensor, "slots kv_heads head_dim"],
    values: Float[Tensor, "slots kv_heads head_dim"],
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    bias: Sequence[Float[Tensor, "heads segment_rows keys"]] | None = None,
    layer: int = 0,
) -> Float[Tensor, "rows heads head_dim"]:
    """Attention of every row over its own sequence's keys.

    Heads that share a key head are folded into extra query rows: the kernel then reads each key once per key head.

    Args:
        query: rotated queries.
        keys, values: pools of one layer, the new rows already written.
        plan: reads and masks of this forward.
        scale: multiplier of scores.
        window: of this layer, in positions.
        softcap: `cap * tanh(score / cap)` on scores.
        bias: per segment, what is added to the scores of each head, visibility included (`-inf` hides a key).
        layer: of the decoder, for segments that bring an attention of their own.

    Raises:
        UsageError: if a segment brings its own attention to a layer that has a window, a soft cap or a bias.
    """
    own = plan.own
    if own and (bias is not None or window is not None or softcap is not None):
        raise UsageError("attention patterns cover plain layers only: no windows, soft caps or score biases; use attention=dense")
    if bias is not None:
        return _biased(query, keys, values, plan.reaches(window), bias, scale)
    heads, kv_heads = query.shape[1], keys.shape[1]
    groups = heads // kv_heads
    lanes = plan.lanes(window) if softcap is None and not own else None
    if lanes is not None:
        return _laned(query, keys, values, lanes, plan.folded_lane_mask(window, groups), scale)
    reaches = plan.reaches(window)
    masks = plan.folded_masks(window, groups)
    if len(reaches) == 1 and plan.exact is None and not own:
        return attend_one(query, keys, values, reaches[0], masks[0], scale, softcap)
    out = torch.zeros_like(query)  # rows of no segment are padding
    for segment, reach, mask in zip(plan.segments, reaches, masks, strict=True):
        rows = query[reach.rows]
        if segment.attention is not None:
            real = segment.memory.length + segment.span
            out[reach.rows] = segment.attention(layer, rows, keys[reach.keys][:real], values[reach.keys][:real], scale)
            continue
        if reach.mask is not None and len(reach.mask) > len(rows):  # padded to the plan's minimum height
            rows = F.pad(rows, (0, 0, 0, 0, 0, len(reach.mask) - len(rows)))
        out[reach.rows] = attend_one(rows, keys, values, reach, mask, scale, softcap)[: reach.rows.stop - reach.rows.start]
    return out


def _biased(
    query: Float[Tensor, "rows heads head_dim"],
    keys: Tensor,
    values: Tensor,
    reaches: Sequence[Reach],
    bias: Sequence[Float[Tensor, "heads segment_rows keys"]],
    scale: float,
) -> Float[Tensor, "rows heads head_dim"]:
    """One call per segment; heads stay apart, for each has scores of its own to add."""
    out = torch.empty_like(query)
    grouped = query.shape[1] != keys.shape[1]
    for reach, own in zip(reaches, bias, strict=True):
        key, value = keys[reach.keys].transpose(0, 1)[None], values[reach.keys].transpose(0, 1)[None]
        part = query[reach.rows].transpose(0, 1)[None]
        part = F.scaled_dot_product_attention(part, key, value, attn_mask=own[None], scale=scale, enable_gqa=grouped)
        out[reach.rows] = part[0].transpose(0, 1)
    return out


def _laned(
    query: Float[Tensor, "rows heads head_dim"],
    keys: Tensor,
    values: Tensor,
    lanes: Lanes,
    mask: Float[Tensor, "lanes 1 folded keys"] | None,
    scale: float,
) -> Float[Tensor, "rows heads head_dim"]:
    """All sequences in one call: their keys are one strided view of the pools."""
    heads, kv_heads, head_dim = query.shape[1], keys.shape[1], query.shape[2]
    groups = heads // kv_heads
    key, value = _lane_view(keys, lanes), _lane_view(values, lanes)
    padded = query if lanes.rows is None else query[lanes.rows]
    folded = padded.view(lanes.count, lanes.height, kv_heads, groups, head_dim).transpose(1, 2)
    folded = folded.reshape(lanes.count, kv_heads, lanes.height * groups, head_dim)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    out = out.view(lanes.count, kv_heads, lanes.height, groups, head_dim).transpose(1, 2).reshape(-1, heads, head_dim)
    return out if lanes.back is None else out[lanes.back]


def _lane_view(pool: Float[Tensor, "slots kv_heads head_dim"], lanes: Lanes) -> Float[Tensor, "lanes kv_heads keys head_dim"]:
    slot, head, unit = pool.stride()
    size = (lanes.count, pool.shape[1], lanes.length, pool.shape[2])
    return pool.as_strided(size, (lanes.stride * slot, head, slot, unit), pool.storage_offset() + lanes.start * slot)


def attend_one(
    query: Float[Tensor, "rows heads head_dim"],
    keys: Tensor,
    values: Tensor,
    reach: Reach,
    mask: Float[Tensor, "1 1 folded keys"] | None,
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "rows heads head_dim"]:
    """Attention of one segment's rows over its reach. Arguments as for `attend`, the mask folded as `plan.folded_masks` has it."""
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    key = keys[reach.keys].transpose(0, 1)[None]
    value = values[reach.keys].transpose(0, 1)[None]
    if reach.causal and softcap is None:
        grouped = heads != kv_heads
        out = F.scaled_dot_product_attention(query.transpose(0, 1)[None], key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return out[0].transpose(0, 1)
    groups = heads // kv_heads
    folded = query.view(rows, kv_heads, groups, head_dim).transpose(0, 1).reshape(1, kv_heads, rows * groups, head_dim)
    if softcap is None:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    else:
        out = _capped(folded, key, value, mask, reach, scale, softcap, groups)
    return out.view(kv_heads, rows, groups, head_dim).transpose(0, 1).reshape(rows, heads, head_dim)


def _capped(
    query: Float[Tensor, "1 kv_heads folded head_dim"],
    key: Float[Tensor, "1 kv_heads keys head_dim"],
    value: Float[Tensor, "1 kv_heads keys head_dim"],
    mask: Tensor | None,
    reach: Reach,
    scale: float,
    softcap: float,
    groups: int,
) -> Float[Tensor, "1 kv_heads folded head_dim"]:
    """Attention with soft-capped scores (Gemma 2, sec. 2), which no fused CPU kernel offers."""
    score = torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap)) * softcap
    if reach.causal:
        visible = torch.ones(query.shape[2] // groups, reach.length, dtype=torch.bool, device=query.device).tril()
        score = score.masked_fill(~visible.repeat_interleave(groups, 0), float("-inf"))
    elif mask is not None:
        score = score + mask
    weight = torch.softmax(score, -1, dtype=torch.float32 if score.dtype.itemsize < 4 else score.dtype)
    return weight.to(value.dtype) @ value


def log_sum_exp(
    query: Float[Tensor, "rows heads head_dim"],
    keys: Float[Tensor, "slots kv_heads head_dim"],
    plan: AttentionPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "rows heads"]:
    """Log-sum-exp of each row's scores as `attend` has them, for merging partial attentions; computed only when tapped."""
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    out = torch.empty(rows, heads, dtype=torch.float32 if query.dtype.itemsize < 4 else query.dtype, device=query.device)
    for reach in plan.reaches(window):
        part = query[reach.rows].view(-1, kv_heads, groups, head_dim)
        score = torch.einsum("tkgd,skd->tkgs", part, keys[reach.keys]).to(out.dtype) * scale
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        count = score.shape[0]
        if reach.mask is not None:
            score = score + reach.mask[:count, None, None, :]
        elif reach.causal:
            hidden = torch.ones(count, reach.length, dtype=torch.bool, device=query.device).triu(1)
            score = score.masked_fill(hidden[:, None, None, :], float("-inf"))
        out[reach.rows] = torch.logsumexp(score, -1).reshape(count, heads)
    return out

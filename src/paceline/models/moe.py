"""Mixture-of-experts feed-forward: every row runs through its chosen experts, none is dropped, and no row depends on another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from paceline.models.config import FeedForwardSpec
from paceline.models.layers import ACTIVATIONS


class MoE(nn.Module):
    """Gated experts behind a linear router (Jiang et al. 2024, Mixtral, sec. 2.1; Qwen3-MoE).

    Each row's experts are added in the order of their index, so a row's result does not depend on which rows stand beside it, up to the
    rounding of matrix products of different heights.

    Args:
        spec: number and width of the experts, how many a row uses, whether their weights are rescaled to one.
        width: of the hidden states.
    """

    def __init__(self, spec: FeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.activation = ACTIVATIONS[spec.activation]
        self.router = nn.Linear(width, spec.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(spec.experts, 2 * spec.width, width), requires_grad=False)
        self.down = nn.Parameter(torch.empty(spec.experts, width, spec.width), requires_grad=False)
        self.router.weight.requires_grad_(False)

    def route(self, hidden: Float[Tensor, "rows width"]) -> tuple[Float[Tensor, "rows active"], Int[Tensor, "rows active"]]:
        """Weight and index of each row's experts; probabilities are float32 or wider, equal ones go to the lower index."""
        logits = F.linear(hidden, self.router.weight)
        probs = torch.softmax(logits, -1, dtype=torch.float64 if hidden.dtype is torch.float64 else torch.float32)
        weights, experts = probs.sort(dim=-1, descending=True, stable=True)  # topk leaves ties to the device
        weights, experts = weights[:, : self.spec.active], experts[:, : self.spec.active]
        return (weights / weights.sum(-1, keepdim=True) if self.spec.normalise else weights), experts

    def forward(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """The weighted sum of each row's experts; only experts that some row chose are touched."""
        weights, experts = self.route(hidden)
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)  # assignments grouped by expert, rows in order inside a group
        rows = order // self.spec.active
        shares = weights.flatten()[order][:, None]
        out = torch.zeros_like(hidden)
        start = 0
        for expert, count in enumerate(torch.bincount(chosen, minlength=self.spec.experts).tolist()):
            if not count:
                continue
            group = rows[start : start + count]
            gate, up = F.linear(hidden[group], self.gate_up[expert]).chunk(2, -1)
            result = F.linear(self.activation(gate) * up, self.down[expert]) * shares[start : start + count]
            out.index_add_(0, group, result.to(out.dtype))  # rows of a group are distinct: no race, one order
            start += count
        return out

"""Norms by name: the RMS norm of `layers.py`, or layer norm where a config asks for it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paceline.models.config import DecoderConfig
from paceline.models.layers import RMSNorm


class LayerNorm(nn.Module):
    """Layer norm with gain and bias (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)
        self.shape, self.eps = (width,), eps

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm


def make_norm(config: DecoderConfig) -> Norm:
    """A norm over the residual stream."""
    if config.norm == "layer":
        return LayerNorm(config.width, config.norm_eps)
    return RMSNorm(config.width, config.norm_eps, config.norm_offset)

"""A masked diffusion model with random weights, of the shape of `pocket-dlm`: what forwards cost does not depend on what was learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from paceline.models.config import DiffusionSpec
from paceline.models.decoder import Decoder
from paceline.models.from_transformers import share_decoder
from paceline.zoo.denoiser import Denoising, new_denoiser
from paceline.zoo.recipes import RECIPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def random_denoiser(positions: int, *, layers: int = 0, pack: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder on the CPU, in LLaDA's layout.

    Args:
        positions: longest canvas.
        layers: fewer or more than `pocket-dlm` has; 0 for as many.
        pack: fuse and pack weights, as loading a checkpoint does.
        seed: of the weights.
        dtype: of the weights.
    """
    shape: dict[str, Any] = dict(RECIPES["pocket-dlm"].shape)
    mask = int(shape["vocab_size"])
    shape |= {"vocab_size": mask + 1, "max_position_embeddings": positions}
    if layers:
        shape["num_hidden_layers"] = layers
    network = new_denoiser(Denoising("llada", mask), shape, seed)
    decoder = share_decoder(cast("PreTrainedModel", network.eval().requires_grad_(False)))
    decoder.config = replace(decoder.config, diffusion=DiffusionSpec(mask=mask))
    decoder = decoder.to(dtype)
    if pack:
        decoder.pack()
    return decoder

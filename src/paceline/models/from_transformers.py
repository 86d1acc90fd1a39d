"""A decoder over the weights of a loaded `transformers` model: the same storage, nothing copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paceline.core.errors import CheckpointError
from paceline.models.checkpoint import DTYPES, as_generated, check_plan, empty_decoder, fill, layout_of, tensor_shapes
from paceline.models.decoder import Decoder
from paceline.models.diffusion_configs import translated
from paceline.models.families import decoder_config
from paceline.models.names import Recipe, choose, recipes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def share_decoder(model: PreTrainedModel, context: int | None = None) -> Decoder:
    """Describe a loaded model as a decoder whose parameters are the model's own tensors (views of them, where the model fuses several).

    Do not `pack` the result: packing releases weights that the model still uses.

    Args:
        model: of a supported architecture, on one device, not quantised.
        context: longest sequence to serve, where it is not the config's (see `decoder_config`).

    Raises:
        CheckpointError: for an unsupported model, naming what stands in the way.
    """
    architecture = type(model).__name__
    described = translated({**model.config.to_dict(), "architectures": [architecture]}) or model.config
    config = decoder_config(described, architecture, context)
    generation = getattr(model, "generation_config", None)
    config = as_generated(config, model.config, {} if generation is None else generation.to_dict())
    held: dict[str, Tensor] = model.state_dict()
    kinds = {(tensor.device, tensor.dtype) for tensor in held.values()}
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise CheckpointError(f"the weights of this {architecture} are of several kinds ({listed}); load it with one dtype on one device")
    device, dtype = kinds.pop()
    if device.type == "meta" or dtype not in DTYPES:
        raise CheckpointError(f"the weights of this {architecture} are {dtype} on {device}; load it unquantised and not offloaded")
    decoder, layout = empty_decoder(config), layout_of(config)
    shapes = tensor_shapes(decoder)
    shareable = {name: tuple(filter(_is_view, ways)) for name, ways in recipes(layout, shapes).items()}
    plan = {name: choose(ways, held) for name, ways in shareable.items()}
    check_plan(plan, {key: tuple(tensor.shape) for key, tensor in held.items()}, layout, f"this {architecture}", repr)
    return fill(decoder, {name: _view(recipe, held) for name, recipe in plan.items()})


def _is_view(recipe: Recipe) -> bool:
    """Whether a single tensor of the model, or some of its rows, is the decoder's tensor."""
    return len(recipe) == 1 and not recipe[0].into


def _view(recipe: Recipe, held: dict[str, Tensor]) -> Tensor:
    (piece,) = recipe
    whole = held[piece.key].detach()
    return whole if piece.rows is None else torch.narrow(whole, 0, piece.rows[0], piece.rows[1] - piece.rows[0])

"""What the words of released configs mean here, whatever the architecture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from paceline.core.errors import CheckpointError
from paceline.models.config import Activation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def activation(config: PreTrainedConfig, key: str) -> Activation:
    """The activation an entry names.

    Raises:
        CheckpointError: for one that is not implemented, naming the entry.
    """
    name = getattr(config, key)
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json: {key} {name!r} is not supported; supported are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def stop_ids(*values: int | Iterable[int] | None) -> tuple[int, ...]:
    """The distinct ids of `eos_token_id` entries, each absent, one or several, in order."""
    ids: dict[int, None] = {}
    for value in values:
        if value is not None:
            ids.update(dict.fromkeys([value] if isinstance(value, int) else value))
    return tuple(ids)

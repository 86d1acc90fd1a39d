"""Files of a non-autoregressive drafter: a folder with `config.json` and `model.safetensors`; and its start from a verifier's encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.core.errors import CheckpointError
from paceline.models.nat import NatConfig, NatDrafter

ARCHITECTURE = "NatDrafter"
CONFIG, WEIGHTS = "config.json", "model.safetensors"

# Names in a BART checkpoint -> names here; `{i}` is the layer.
_ENCODER = {
    "model.shared": "embedding",
    "model.encoder.embed_positions": "source_positions",
    "model.encoder.layernorm_embedding": "source_norm",
}
_ENCODER_LAYER = {
    "self_attn.q_proj": "attention.queries",
    "self_attn.k_proj": "attention.keys",
    "self_attn.v_proj": "attention.values",
    "self_attn.out_proj": "attention.output",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "up",
    "fc2": "down",
    "final_layer_norm": "norm",
}


def is_nat(folder: Path) -> bool:
    """Whether a folder holds a drafter of this kind."""
    config = folder / CONFIG
    return config.is_file() and ARCHITECTURE in json.loads(config.read_text(encoding="utf-8")).get("architectures", [])


def save_nat(network: NatDrafter, folder: Path) -> None:
    """Write weights, rounded to bf16, and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    content = {"architectures": [ARCHITECTURE], "model_type": "nat-drafter", **asdict(network.config)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_nat(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NatDrafter:
    """A drafter in evaluation mode.

    Raises:
        CheckpointError: if files or tensors are missing or do not fit, naming them.
    """
    if not is_nat(folder):
        raise CheckpointError(
            f"{folder.name}/{CONFIG} does not describe a {ARCHITECTURE}; make one with `paceline zoo build pocket-edit-nat`"
        )
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    known = {field.name for field in fields(NatConfig)}
    try:
        config = NatConfig(**{key: value for key, value in content.items() if key in known})
    except TypeError as error:
        raise CheckpointError(f"{folder.name}/{CONFIG}: {error}; write the folder again") from None
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder.name}/{WEIGHTS} is missing; make it with `paceline zoo build pocket-edit-nat`")
    with torch.device("meta"):
        network = NatDrafter(config)
    held = load_file(folder / WEIGHTS)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if wrong := sorted(set(wanted.items()) ^ set(found.items())):
        raise CheckpointError(f"{folder.name}/{WEIGHTS}: {wrong[0][0]} is missing, unknown or of another shape; write the folder again")
    network.load_state_dict({name: tensor.to(device, dtype) for name, tensor in held.items()}, assign=True)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def inherit_encoder(network: NatDrafter, verifier: Mapping[str, Tensor]) -> None:
    """Start from a BART-class verifier: its embedding and its encoder, layer by layer.

    Args:
        verifier: its state dict, in the layout of released checkpoints.

    Raises:
        CheckpointError: if a tensor is missing or has another shape.
    """
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _ENCODER.items() for kind in ("weight", "bias")}
    for layer in range(network.config.encoder_layers):
        for theirs, ours in _ENCODER_LAYER.items():
            names |= {f"model.encoder.layers.{layer}.{theirs}.{kind}": f"encoder.{layer}.{ours}.{kind}" for kind in ("weight", "bias")}
    own = network.state_dict()
    for theirs, ours in names.items():
        if ours not in own:  # tables have no bias
            continue
        if theirs not in verifier or verifier[theirs].shape != own[ours].shape:
            shape = tuple(verifier[theirs].shape) if theirs in verifier else "missing"
            raise CheckpointError(
                f"the verifier's {theirs} is {shape}, and the drafter needs {tuple(own[ours].shape)}; match their encoders"
            )
        own[ours].copy_(verifier[theirs])

"""Which weights were audited: a digest of the files they came from, or of the tensors themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

BLOCK = 1 << 22


def weights_digest(model: Any, decoder: nn.Module) -> str | None:
    """SHA-256 of a model's weights.

    Args:
        model: what the user named; for a folder, a Hub id or a pocket model the `*.safetensors` files are read, in name order.
        decoder: the loaded weights, for models that were given loaded.

    Returns:
        The hex digest; `None` for a loaded model whose weights were packed, since packing does not keep the originals.
    """
    if isinstance(model, (str, Path)):
        from paceline.models.hub import locate
        from paceline.zoo.registry import resolve as pocket

        return _files_digest(locate(pocket(str(model)) or model))
    tensors = decoder.state_dict()
    if any(tensor.numel() == 0 for tensor in tensors.values()):
        return None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _files_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()

"""A short name of a model's weights, the same in every precision: what is learnt for one model must not be used with another."""

from __future__ import annotations

import hashlib

import torch

from paceline.models.decoder import Decoder

ROWS = 256  # of the embedding, which every training changes


def model_identity(decoder: Decoder) -> str:
    """Sixteen hexadecimal digits of the sizes and of the first embeddings, rounded to bf16."""
    config = decoder.config
    sizes = f"{config.family} {config.vocabulary} {config.width} {len(config.layers)}"
    rows = decoder.embed.weight[:ROWS].detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return hashlib.sha256(sizes.encode() + rows.tobytes()).hexdigest()[:16]

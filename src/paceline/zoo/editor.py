"""The pocket editing model as the released architecture it is: a BART-class network, made from a recipe, saved and loaded.

Two choices of its initial weights save most of the time that learning to copy takes: encoder and decoder begin with the same
sinusoidal position vectors, and every cross-attention with equal query and key projections. A decoder position then looks at the
source position it is about to copy from the first step on. All of them are trained like any other weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID, device_of, inherit_embedding
from paceline.zoo.tokenizer import SPECIALS

START_ID = SPECIALS.index("<|bos|>")
WAVES = 200.0  # longest wavelength of the initial positions over the shortest: spans are short, so few slow waves are needed


def new_editor(shape: Mapping[str, int | float | bool], seed: int, like: nn.Module | None = None) -> nn.Module:
    """A BART-shaped network with seeded weights, in fp32 and training mode.

    Args:
        shape: keyword arguments of `transformers.BartConfig`.
        like: a model of the same vocabulary whose embedding this one starts from, projected to its width.
    """
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    special: dict[str, Any] = {
        "bos_token_id": START_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PAD_ID,
        "decoder_start_token_id": START_ID,
        "forced_eos_token_id": None,
    }
    config = BartConfig(**{**shape, **special})
    network = BartForConditionalGeneration(config)
    if like is not None:
        inherit_embedding(network, like, float(config.init_std or 0.02))
    _align(network)
    return cast(nn.Module, network.train())


def load_editor(folder: Path) -> nn.Module:
    """An exported editing model in fp32, in evaluation mode, on the CPU."""
    from transformers import AutoModelForSeq2SeqLM

    return cast(nn.Module, AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)).eval()


def shifted(target: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """Decoder inputs that predict `target`: the start symbol, then all but the last target token."""
    return torch.cat([torch.full_like(target[:, :1], START_ID), target[:, :-1]], dim=1)


def editor_hidden(
    network: nn.Module, source: Int[Tensor, "rows source"], inputs: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens width"]:
    """Last hidden states of the decoder; padding of the source is not attended to."""
    model = cast(Any, network).model
    states = model(input_ids=source, attention_mask=(source != PAD_ID).long(), decoder_input_ids=inputs, use_cache=False)
    return cast(Tensor, states.last_hidden_state)


def editor_logits(network: nn.Module, hidden: Float[Tensor, "*any width"]) -> Float[Tensor, "*any vocabulary"]:
    """Logits of hidden states."""
    return cast(Tensor, cast(Any, network).lm_head(hidden))


@torch.inference_mode()
def greedy_edits(network: nn.Module, source: Int[Tensor, "rows source"], longest: int) -> list[list[int]]:
    """The network's own greedy output for each row of a padded batch, without end-of-text, at most `longest` tokens."""
    place = device_of(network)
    output = cast(Any, network).generate(
        source.to(place), attention_mask=(source != PAD_ID).long().to(place), max_new_tokens=longest, do_sample=False, num_beams=1
    )
    rows = cast(Tensor, output)[:, 1:].tolist()
    return [row[: row.index(END_OF_TEXT_ID)] if END_OF_TEXT_ID in row else [t for t in row if t != PAD_ID] for row in rows]


@torch.no_grad()
def _align(network: nn.Module) -> None:
    model = cast(Any, network).model
    table = model.encoder.embed_positions.weight
    positions = _sinusoids(*table.shape) * (float(cast(Any, network).config.init_std) * math.sqrt(2.0))  # waves have half the power
    model.encoder.embed_positions.weight.copy_(positions)
    model.decoder.embed_positions.weight.copy_(positions)
    for layer in model.decoder.layers:
        nn.init.orthogonal_(layer.encoder_attn.q_proj.weight)
        layer.encoder_attn.k_proj.weight.copy_(layer.encoder_attn.q_proj.weight)


def _sinusoids(count: int, width: int) -> Float[Tensor, "count width"]:
    rates = WAVES ** -(torch.arange(width // 2) / (width // 2))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)

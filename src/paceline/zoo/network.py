"""The zoo's only door to `transformers` models: make one from a recipe, load one from a folder, and ask one for logits.

A pocket model is trained as the released architecture it will be loaded as, so nothing in its making depends on paceline's own decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from paceline.zoo.tokenizer import END_OF_TEXT, PAD, SPECIALS

END_OF_TEXT_ID = SPECIALS.index(END_OF_TEXT)
PAD_ID = SPECIALS.index(PAD)


def new_network(shape: Mapping[str, int | float | bool], seed: int, teacher: nn.Module | None = None) -> nn.Module:
    """A Llama-shaped network with seeded random weights, in fp32 and training mode.

    Args:
        shape: keyword arguments of `transformers.LlamaConfig`.
        teacher: if given, the embedding starts as the leading principal directions of the teacher's: tokens that are close for one
            are close for the other from the first step, which saves a small model much of its warm-up.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    options: dict[str, Any] = {**shape, "bos_token_id": None, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": PAD_ID}
    config = LlamaConfig(**options)
    network = LlamaForCausalLM(config)
    if teacher is not None:
        inherit_embedding(network, teacher, float(config.initializer_range))
    return cast(nn.Module, network.train())


def load_network(folder: Path) -> nn.Module:
    """An exported model in fp32, in evaluation mode, on the CPU."""
    from transformers import AutoModelForCausalLM

    return cast(nn.Module, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()


def save_network(network: nn.Module, folder: Path) -> None:
    """Write the weights, rounded to bf16, and the configuration, in the layout `load_network` and every other loader reads."""
    source = cast(Any, network)
    rounded: Any = type(source)(source.config)
    rounded.load_state_dict(source.state_dict())
    nn.Module.to(rounded, dtype=torch.bfloat16)
    rounded.config.dtype = torch.bfloat16
    rounded.save_pretrained(folder)


def logits_of(network: nn.Module, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens vocabulary"]:
    """Next-token logits at every position, in the precision the network computes in."""
    return cast(Tensor, network(input_ids=ids, use_cache=False).logits)


def greedy_continuation(network: nn.Module, prompt: Int[Tensor, " prompt"], tokens: int) -> Int[Tensor, " generated"]:
    """Plain greedy continuation of at most `tokens` ids, on the CPU; ends after end-of-text."""
    ids = prompt[None].to(device_of(network))
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": PAD_ID}
    output = cast(Any, network).generate(ids, attention_mask=torch.ones_like(ids), **options)
    return cast(Tensor, output)[0, len(prompt) :].cpu()


def embedding_of(network: nn.Module) -> Float[Tensor, "vocabulary width"]:
    """The token embedding's weight."""
    return cast(Tensor, cast(Any, network).get_input_embeddings().weight)


def parameter_count(network: nn.Module) -> int:
    """Parameters, a tied embedding counted once."""
    return sum(parameter.numel() for parameter in network.parameters())


def device_of(network: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(network.parameters()).device


@torch.no_grad()
def inherit_embedding(network: nn.Module, teacher: nn.Module, spread: float) -> None:
    """Set the embedding to the teacher's, projected on as many principal directions as fit, rescaled to the usual initial spread."""
    table = embedding_of(network)
    source = embedding_of(teacher).float().cpu()
    if source.shape[0] != table.shape[0] or source.shape[1] < table.shape[1]:
        return  # another vocabulary or a narrower teacher: nothing to project
    left, scale, _ = torch.linalg.svd(source, full_matrices=False)
    leading = left[:, : table.shape[1]] * scale[: table.shape[1]]
    table.copy_(leading * (spread / leading.std()))

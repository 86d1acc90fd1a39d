"""Draft networks that are no decoders of their own: found by what their folder says, loaded beside the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paceline.core.errors import UsageError
from paceline.memory.ledger import Ledger
from paceline.models.decoder import Decoder
from paceline.models.nat import NatDrafter


def open_network(draft: Any, target: Decoder, ledger: Ledger) -> NatDrafter | None:
    """The non-autoregressive drafter that `draft` names; `None` if it names something else.

    It comes on the target's device and in the target's type, but in at least float32 on a CPU.

    Args:
        draft: a pocket model's name, a folder, a Hub id, or a loaded drafter.
        target: whose vocabulary it must share.
        ledger: its weights are added there.

    Raises:
        UsageError: if the vocabularies differ.
        CheckpointError: if its files cannot be read.
    """
    network = draft if isinstance(draft, NatDrafter) else _read(draft, target)
    if network is None:
        return None
    if network.config.vocabulary != target.config.vocabulary:
        raise UsageError(
            f"the drafter has a vocabulary of {network.config.vocabulary}, the target {target.config.vocabulary}; "
            "a drafter must share the target's tokenizer"
        )
    ledger.add("weights", sum(tensor.nbytes for tensor in network.state_dict().values()))
    return network


def _read(draft: Any, target: Decoder) -> NatDrafter | None:
    from paceline.models.hub import locate
    from paceline.models.nat_files import is_nat, load_nat
    from paceline.zoo.registry import require_built, resolve

    if not isinstance(draft, (str, Path)):
        return None
    require_built(str(draft))
    folder = locate(resolve(str(draft)) or draft)
    if not is_nat(folder):
        return None
    # Drafts decide nothing, so the type is a matter of speed alone: on a CPU, products of this size in bf16 took four times as long.
    kind = torch.promote_types(target.dtype, torch.float32) if target.device.type == "cpu" else target.dtype
    return load_nat(folder, kind, target.device)

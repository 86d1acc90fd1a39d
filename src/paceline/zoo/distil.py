"""Sequence-level distillation: a verifier's own greedy outputs take the place of references (Kim and Rush 2016, arXiv 1606.07947)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from torch import nn

from paceline.zoo.editor import greedy_edits
from paceline.zoo.pairs import EditPairs, Pair, max_source, padded

ROWS = 64  # sources decoded together


def distilled_pairs(verifier: nn.Module, data: EditPairs, count: int, longest: int, file: Path) -> list[Pair]:
    """`count` pairs whose targets are what the verifier makes of the sources; made once and kept in `file`.

    Args:
        longest: of sources' references, in tokens. Where the verifier does not come to an end, the reference stays.
        file: where they are kept. One of other weights, files or settings is made anew.
    """
    signature = [_digest(verifier), data.lines, data.seed, list(data.rates), count, longest]
    pairs = data.pairs("distil", count, longest)
    outputs = _kept(file, signature)
    if outputs is None:
        outputs = own_outputs(verifier, pairs, longest)
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps({"signature": signature, "outputs": outputs}), encoding="utf-8")
        os.replace(partial, file)
    return [pair if output is None else replace(pair, target=output) for pair, output in zip(pairs, outputs, strict=True)]


def own_outputs(verifier: nn.Module, pairs: list[Pair], longest: int) -> list[list[int] | None]:
    """The verifier's greedy output for every source, without end-of-text, in the order of the pairs.

    Args:
        longest: outputs that have not ended after so many tokens, or after half as many again as the source has, are `None`.
    """
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].source))
    outputs: list[list[int] | None] = [None] * len(pairs)
    for start in range(0, len(order), ROWS):
        members = order[start : start + ROWS]
        batch = padded([pairs[index] for index in members])
        limit = min(longest, max_source(batch.source.shape[1]))
        for index, output in zip(members, greedy_edits(verifier, batch.source, limit), strict=True):
            outputs[index] = output if len(output) < limit else None
    return outputs


def _kept(file: Path, signature: list[object]) -> list[list[int] | None] | None:
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    outputs: list[list[int] | None] = content["outputs"]
    return outputs if content["signature"] == signature else None


def _digest(network: nn.Module) -> str:
    """Of all weights, so that outputs of another verifier are never taken for this one's."""
    whole = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return whole.hexdigest()

"""How good an editing model is: exact corrections, agreement token by token, and how far its output is from its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paceline.zoo.editor import editor_hidden, editor_logits, greedy_edits, shifted
from paceline.zoo.network import PAD_ID, device_of
from paceline.zoo.pairs import EditPairs, Pair, padded

ROWS = 32  # pairs per forward


@dataclass(frozen=True, slots=True)
class EditQuality:
    """Figures over pairs of one slip rate.

    Attributes:
        rate: share of words and marks that were hit.
        exact: share of spans restored exactly, greedily.
        untouched: share of spans that an editor who changes nothing gets right.
        accuracy: share of original tokens predicted right, teacher-forced.
        distance: token edit distance of the greedy output from the original, per original token.
        source_distance: the same of the source, which is what there was to correct.
    """

    rate: float
    exact: float
    untouched: float
    accuracy: float
    distance: float
    source_distance: float


def edit_quality(network: nn.Module, data: EditPairs, rate: float, count: int, longest: int = 96) -> EditQuality:
    """Measure a network on `count` pairs of the given slip rate, drawn from `data`'s files."""
    stream = EditPairs(data.texts, data.tokenizer, data.seed, (rate, rate))
    pairs = sorted(stream.pairs(f"quality:{rate}", count, longest), key=lambda pair: len(pair.target))
    outputs: list[list[int]] = []
    for start in range(0, len(pairs), ROWS):
        batch = padded(pairs[start : start + ROWS])
        outputs.extend(greedy_edits(network, batch.source, batch.target.shape[1] + longest // 4))
    tokens = sum(len(pair.target) for pair in pairs)
    return EditQuality(
        rate=rate,
        exact=sum(output == pair.target for output, pair in zip(outputs, pairs, strict=True)) / len(pairs),
        untouched=sum(pair.source == pair.target for pair in pairs) / len(pairs),
        accuracy=teacher_forced_accuracy(network, pairs),
        distance=sum(edit_distance(output, pair.target) for output, pair in zip(outputs, pairs, strict=True)) / tokens,
        source_distance=sum(edit_distance(pair.source, pair.target) for pair in pairs) / tokens,
    )


@torch.inference_mode()
def teacher_forced_accuracy(network: nn.Module, pairs: Sequence[Pair]) -> float:
    """Share of target tokens, end-of-text included, that are the network's first choice given those before them."""
    network.eval()
    right = total = 0
    for start in range(0, len(pairs), ROWS):
        batch = padded(pairs[start : start + ROWS]).to(device_of(network))
        known = batch.target != PAD_ID
        guesses = editor_logits(network, editor_hidden(network, batch.source, shifted(batch.target))[known]).argmax(-1)
        right += int((guesses == batch.target[known]).sum())
        total += int(known.sum())
    return right / total


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Least insertions, deletions and substitutions that turn `a` into `b` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]

"""The filter of Learn2PD: a tiny network from the confidences of a block to which of its predictions are final, and the file it lives in.

Source: Learning to Parallel (arXiv 2509.25188), sec. 3.2.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from paceline.core.errors import CheckpointError
from paceline.denoising.canvas import Flags, Floats
from paceline.denoising.guesses import Guesses

Feature = Literal["probability", "entropy"]
Weights = npt.NDArray[np.float32]

VERSION = 1
ENTRY = "paceline.filter"
COMMAND = "paceline train learn2pd MODEL"
BESIDE = "model"  # in place of a file's name: the one that lies beside the model


def file_name(block: int | Literal["*"]) -> str:
    """Name of the filter for blocks of a size, in the folder of the model that it was trained for; `*` is a pattern for all sizes."""
    return f"learn2pd-{block}.safetensors"


@dataclass(frozen=True, slots=True)
class FilterFacts:
    """What a filter was made for, and how; the file holds exactly these fields beside the weights.

    Attributes:
        model: identity of the weights it was trained with.
        block: positions per block, which is the width of the network.
        feature: `probability` of the predicted token at every position (LLaDA), or minus the `entropy`, zero where decided (Dream).
        threshold: probability of being final above which a prediction is accepted, chosen on validation prompts.
        training: figures of the training, for reports.
    """

    model: str
    block: int
    feature: Feature = "probability"
    threshold: float = 0.96
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filter:
    """Linear layers of `block` by `block` with ReLU between them; two of them are the published network.

    Args:
        layers: weight (out by in) and bias of each layer.
        facts: what it is for.
    """

    layers: tuple[tuple[Weights, Weights], ...]
    facts: FilterFacts

    @property
    def parameters(self) -> int:
        """Number of weights: 2 (B^2 + B) for two layers."""
        return sum(weight.size + bias.size for weight, bias in self.layers)

    def logits(self, features: Floats) -> Floats:
        """Log-odds of being final, for rows of `block` features in order of position."""
        hidden = features.astype(np.float32)
        for number, (weight, bias) in enumerate(self.layers):
            hidden = (np.maximum(hidden, 0) if number else hidden) @ weight.T + bias
        return hidden.astype(np.float64)

    def features(self, guesses: Guesses, low: int) -> Floats:
        """Features of a block that begins at `low`: zero where nothing was asked, and behind the end of a shorter block."""
        found = np.zeros(self.facts.block)
        found[guesses.positions - low] = feature_values(guesses, self.facts.feature)
        return found

    def accepts(self, guesses: Guesses, low: int, threshold: float) -> Flags:
        """Which guesses are final with more than this probability; at 0 all are, at 1 none."""
        with np.errstate(divide="ignore"):
            bar = np.log(threshold) - np.log1p(-threshold)
        accepted: Flags = self.logits(self.features(guesses, low))[guesses.positions - low] > bar
        return accepted


def feature_values(guesses: Guesses, feature: Feature) -> Floats:
    """What a filter sees of every guess."""
    if feature == "entropy":
        return np.where(guesses.open, -guesses.entropy, 0.0)
    return np.exp(guesses.logprob)


def save_filter(made: Filter, file: Path) -> None:
    """Write a filter next to its name, then rename: a crash leaves an old one whole."""
    tensors = {
        f"{number}.{part}": np.ascontiguousarray(value)
        for number, layer in enumerate(made.layers)
        for part, value in zip(("weight", "bias"), layer, strict=True)
    }
    partial = file.with_name(f".{file.name}.partial")
    save_file(tensors, partial, metadata={ENTRY: json.dumps({"version": VERSION, **asdict(made.facts)})})
    os.replace(partial, file)


def load_filter(file: Path) -> Filter:
    """Read a filter.

    Raises:
        CheckpointError: if there is none, or the file is something else.
    """
    if not file.is_file():
        raise CheckpointError(f"filter file {file} does not exist; make it with `{COMMAND}`")
    try:
        with safe_open(file, "np") as content:
            entry = (content.metadata() or {}).get(ENTRY)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a filter file ({error}); make one with `{COMMAND}`") from None
    facts = json.loads(entry) if entry else {}
    if facts.pop("version", None) != VERSION:
        raise CheckpointError(f"{file} holds no filter of this version; make one with `{COMMAND}`")
    layers = tuple((tensors[f"{number}.weight"], tensors[f"{number}.bias"]) for number in range(len(tensors) // 2))
    made = Filter(layers, FilterFacts(**facts))
    size = made.facts.block
    if not layers or any(weight.shape != (size, size) or bias.shape != (size,) for weight, bias in layers):
        raise CheckpointError(f"{file}: the weights do not fit blocks of {size}; make it again with `{COMMAND}`")
    return made

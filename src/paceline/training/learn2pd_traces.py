"""What a Learn2PD filter learns from: confidences of blocks while the final answer is already known (Extremely Greedy Parallel).

Source: Learning to Parallel (arXiv 2509.25188), sec. 3.1 and 3.2. The reference answers are the model's own, decoded statically, so that no
ground truth is needed. Decoding again, every open position whose prediction is its final token is decided at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.errors import PacelineError
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas, Flags, Floats, Ints
from paceline.denoising.guesses import Guesses
from paceline.denoising.learn2pd_filter import Feature, feature_values
from paceline.denoising.reading import Question, Reading, read
from paceline.denoising.rules import Scope
from paceline.engine.llm import LLM
from paceline.engine.load import load

COLUMNS = ("prompt", "features", "labels", "masked", "forced")
SURE = 1e4  # logit of a token that is forced


@dataclass(frozen=True, slots=True)
class Traces:
    """One record per forward of a block.

    Attributes:
        prompt: number of the prompt behind each record.
        features: (records, block), in order of position; zero behind the end of a shorter block.
        labels: (records, block): the prediction is the final token.
        masked: (records, block): the position is open.
        forced: (records): nothing open was predicted right, and the block was overwritten with the reference.
        static: forwards of static decoding, over all prompts.
    """

    prompt: Ints
    features: Floats
    labels: Flags
    masked: Flags
    forced: Flags
    static: int

    @property
    def forwards(self) -> int:
        """Forwards of the oracle, over all prompts."""
        return len(self.prompt)

    @classmethod
    def joined(cls, parts: Sequence[Traces]) -> Traces:
        """Records of several traces; prompts keep their numbers."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls(**columns, static=sum(part.static for part in parts))


@dataclass(slots=True)
class Recorder:
    """Watches an oracle decode, and overwrites blocks in which it is stuck: without a right prediction nothing would ever change.

    Args:
        answers: whole canvases by prompt.
        block: width of a record.
        reading: of the decoder that is watched.
        feature: what is recorded.
    """

    answers: Mapping[tuple[int, ...], Ints]
    block: int
    reading: Reading
    feature: Feature
    records: dict[tuple[int, ...], list[tuple[Floats, Flags, Flags, bool]]] = field(default_factory=dict)

    def tokens(self, step: int | None, canvas: Canvas) -> None:
        """Nothing to see in decided tokens."""

    def logits(self, step: int, canvas: Canvas, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        """Record a block; what comes back is decided by `Oracle`."""
        positions = np.arange(canvas.low, canvas.high)
        still = canvas.open[positions]
        question = Question(canvas, positions, still, Sampling(), np.zeros(len(positions), dtype=bool))
        (guesses,) = read(logits.clone(), [question], self.reading, self.feature == "entropy")
        key = tuple(int(token) for token in canvas.ids[: canvas.prompt])
        wanted = self.answers[key][positions]
        right = guesses.tokens == wanted
        stuck = not (right & still).any()
        rows = np.zeros((3, self.block))
        rows[:, : len(positions)] = feature_values(guesses, self.feature), right, still
        self.records.setdefault(key, []).append((rows[0], rows[1] > 0, rows[2] > 0, stuck))
        if not stuck:
            return logits
        forced = torch.zeros_like(logits)
        forced[torch.arange(len(positions)), torch.from_numpy(wanted).to(logits.device)] = SURE
        return forced


@dataclass(frozen=True, slots=True)
class Oracle:
    """Decides every open position whose prediction is the final token."""

    answers: Mapping[tuple[int, ...], Ints]
    scope: Scope = "block"
    entropy: bool = False

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        wanted = self.answers[tuple(int(token) for token in canvas.ids[: canvas.prompt])]
        chosen: Flags = guesses.open & (guesses.tokens == wanted[guesses.positions])
        return chosen

    def over(self, canvas: Canvas) -> bool:
        return False


def trace(
    model: LLM, prompts: Sequence[Sequence[int]], length: int, block: int, feature: Feature = "probability", first: int = 0
) -> Traces:
    """Records of the oracle on some prompts, all decoded together.

    Args:
        model: a masked diffusion model.
        prompts: ids.
        length: tokens of every answer.
        first: number of the first prompt.

    Raises:
        PacelineError: if the oracle does not arrive at the reference answers.
    """
    room = len(prompts) * (max(map(len, prompts)) + length + block)
    asked = [list(prompt) for prompt in prompts]
    method = f"static:block={block},early_exit=false"
    llm = load(model, method, device=model.runner.decoder.device, kv_tokens=room, max_rows=1 << 20, prefix_cache=False)
    outputs = llm.generate(asked, max_tokens=length, ignore_eos=True)
    answers = {tuple(prompt): np.array([*prompt, *(output.canvas or ())]) for prompt, output in zip(prompts, outputs, strict=True)}
    recorder = Recorder(answers, block, llm.engine.denoiser.reading, feature)
    llm.engine.denoiser = replace(llm.engine.denoiser, rule=Oracle(answers), hooks=recorder)
    for reference, found in zip(outputs, llm.generate(asked, max_tokens=length, ignore_eos=True), strict=True):
        if found.canvas != reference.canvas:
            raise PacelineError("the oracle decoder did not arrive at the static answer; load the model in float32")
    static = sum(output.stats.forwards for output in outputs)
    records = [(first + number, *record) for number, prompt in enumerate(prompts) for record in recorder.records[tuple(prompt)]]
    columns = [np.array(column) for column in zip(*records, strict=True)]
    return Traces(columns[0], columns[1], columns[2], columns[3], columns[4], static)


def traces(
    model: LLM,
    prompts: Sequence[Sequence[int]],
    length: int,
    block: int,
    feature: Feature,
    batch: int,
    folder: Path,
    report: Callable[[int], None] | None = None,
) -> Traces:
    """Records of all prompts, `batch` at a time; every part is written when it is done, and read instead of made when it is there.

    Args:
        folder: for the parts; of this model, these prompts and these settings alone.
        report: called with the number of prompts done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    parts = []
    for first in range(0, len(unique), batch):
        file = folder / f"traces-{first:06d}.npz"
        if not file.is_file():
            _write(trace(model, unique[first : first + batch], length, block, feature, first), file)
        parts.append(_read(file))
        if report is not None:
            report(min(first + batch, len(unique)))
    return Traces.joined(parts)


def _write(part: Traces, file: Path) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("wb") as content:
        np.savez_compressed(
            content, prompt=part.prompt, features=part.features, labels=part.labels, masked=part.masked, forced=part.forced,
            static=np.array(part.static),
        )  # fmt: skip
    os.replace(partial, file)


def _read(file: Path) -> Traces:
    with np.load(file) as content:
        return Traces(**{name: content[name] for name in COLUMNS}, static=int(content["static"]))

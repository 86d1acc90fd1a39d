"""`paceline train learn2pd`: prompts, traces, a fitted filter and its file, resumable after every part of the traces."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import get_args

from paceline.core.errors import CheckpointError, UsageError
from paceline.denoising.base import DenoisingConfig, block_of
from paceline.denoising.learn2pd_filter import Feature, Filter, file_name, save_filter
from paceline.engine.identity import model_identity
from paceline.engine.llm import LLM
from paceline.models.config import DiffusionSpec
from paceline.training.learn2pd_fit import FitOptions, fit
from paceline.training.learn2pd_traces import traces
from paceline.zoo.corpus import Split, stdlib_files
from paceline.zoo.prompts import held_out_prompts
from paceline.zoo.tasks import problems

Report = Callable[[str, int, int], None]  # what is being done, steps done, steps in all

CODE_CHARACTERS = 400  # of a default prompt of code
FILES = 200  # library files that default prompts of code are cut from


@dataclass(frozen=True, slots=True)
class FilterJob:
    """What to train.

    Args:
        block: positions per block; the model's own for block-causal models.
        length: tokens of every answer, a multiple of the block.
        feature: what the filter sees.
        batch: answers decoded together.
        fit: how the network is trained.
    """

    block: int = 32
    length: int = 256
    feature: Feature = "probability"
    batch: int = 8
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        rules = {
            "block": (self.block >= 1, "at least 1"),
            "length": (self.length >= 1 and self.length % max(1, self.block) == 0, f"a multiple of block={self.block}"),
            "feature": (self.feature in get_args(Feature), " or ".join(get_args(Feature))),
            "batch": (self.batch >= 1, "at least 1"),
        }
        for name, (valid, wanted) in rules.items():
            if not valid:
                raise UsageError(f"learn2pd training: option {name}={getattr(self, name)!r} must be {wanted}")


def train_filter(
    model: LLM,
    prompts: Sequence[Sequence[int]],
    job: FilterJob,
    out: Path,
    work_dir: Path | None = None,
    resume: bool = True,
    report: Report | None = None,
) -> Filter:
    """Train a filter for a model and write it.

    Args:
        model: a masked diffusion model, in the precision it will be used in.
        prompts: ids; as those it will be used on.
        out: file of the filter.
        work_dir: keeps the traces; in the user's cache when None. They are found again by model, prompts and settings.
        resume: use traces that are there.
        report: progress.

    Raises:
        UsageError: if the model is autoregressive, or a prompt leaves no room for an answer.
    """  # fmt: skip
    spec = _diffusion(model)
    if spec.block not in (None, job.block):
        raise UsageError(f"learn2pd training: option block={job.block}: this model was made for blocks of {spec.block}")
    if long := [prompt for prompt in prompts if len(prompt) + job.length > model.engine.context]:
        raise UsageError(f"a prompt of {len(long[0])} tokens leaves no room for {job.length} more; shorten it or lower --length")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"the filter cannot be written to {out.parent}; give --out FILE in another folder")
    name = model_identity(model.runner.decoder)
    folder = (work_dir or default_folder()) / _signature(name, prompts, job)
    if not resume:
        for part in folder.glob("traces-*.npz"):
            part.unlink()
    count = len({tuple(prompt) for prompt in prompts})
    found = traces(
        model, prompts, job.length, job.block, job.feature, job.batch, folder,
        None if report is None else lambda done: report("decoding with the oracle", done, count),
    )  # fmt: skip
    made = fit(
        found,
        name,
        job.feature,
        job.fit,
        None if report is None else lambda done, loss: report(f"training, loss {loss:.3f}", done, job.fit.iterations),
    )
    save_filter(made, out)
    return made


def usual_block(model: LLM) -> int:
    """Positions per block that a model decodes with when nobody says otherwise."""
    return block_of(DenoisingConfig(), _diffusion(model))


def beside(model: LLM, block: int) -> Path:
    """Where decoding looks for a filter if none is named: in the model's folder.

    Raises:
        UsageError: if the model has none.
    """
    folder = model.runner.decoder.folder
    if folder is None:
        raise UsageError(f"{model.name} was not loaded from a folder that the filter could go to; give --out FILE")
    return folder / file_name(block)


def default_folder() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME/paceline/learn2pd`, or `~/.cache/paceline/learn2pd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "learn2pd"


def default_prompts(count: int, seed: int) -> list[str]:
    """Generated problems and beginnings of library code, in equal parts; nothing that pocket models are judged by."""
    code = (count + 1) // 2
    files = sorted(stdlib_files(split=Split.TRAIN), key=lambda file: file.name)
    Random(seed).shuffle(files)
    texts = [prompt.prefix for prompt in held_out_prompts(code, CODE_CHARACTERS, CODE_CHARACTERS, files=files[: max(FILES, 4 * code)])]
    return [*texts, *(problem.prompt for problem in problems(count - code, Split.TRAIN, seed))]


def read_prompts(file: Path) -> list[str]:
    """One prompt per line; in a `.jsonl` file each line is a JSON string, or an object with the key `prompt`.

    Raises:
        CheckpointError: if the file cannot be read, or a line is neither.
    """
    if not file.is_file():
        raise CheckpointError(f"prompt file {file} does not exist")
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.suffix != ".jsonl":
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append(entry if isinstance(entry, str) else str(entry["prompt"]))
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{file}, line {number}: neither a JSON string nor an object with the key prompt") from None
    return found


def _diffusion(model: LLM) -> DiffusionSpec:
    spec = model.runner.decoder.config.diffusion
    if spec is None:
        raise UsageError(f"{model.name} is autoregressive; filters are for masked diffusion models")
    return spec


def _signature(model: str, prompts: Sequence[Sequence[int]], job: FilterJob) -> str:
    told = json.dumps([model, [list(prompt) for prompt in prompts], job.block, job.length, job.feature, job.batch])
    return hashlib.sha256(told.encode()).hexdigest()[:16]

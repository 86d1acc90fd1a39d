"""The card of a pocket model: what it was made from, how good it is, and what its text looks like, as JSON and as a README."""

from __future__ import annotations

import json
import lzma
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paceline.zoo.evaluation import acceptance_by_depth, bits_per_byte, encode
from paceline.zoo.material import Material
from paceline.zoo.network import greedy_continuation, parameter_count
from paceline.zoo.prompts import HeldOutPrompt, held_out_prompts
from paceline.zoo.recipes import Recipe
from paceline.zoo.training import Progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CARD = "card.json"
README = "README.md"
SAMPLE_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Sample:
    """A greedy continuation of a held-out prompt, beside the last lines of the prompt and the truth."""

    name: str
    line: int
    prompt_tail: str
    continuation: str
    truth: str


@dataclass(frozen=True, slots=True)
class Card:
    """Facts about one pocket model; `card.json` holds exactly these fields.

    Attributes:
        recipe: the row of the recipe table, as data.
        corpus: the manifest of the standard library it was trained on.
        parameters, weight_bytes: count (tied embedding once) and size in bf16.
        tokens, epochs, steps, seconds: what training used; `ended_by` says whether tokens or time ended it.
        validation_bits_per_byte: over every validation file, windows of 1024 tokens, weights as exported.
        lzma_bits_per_byte: the same files under xz at its strongest, each file alone, for scale.
        acceptance_by_depth: for a draft: how often its first d greedy tokens all match the teacher's greedy text on held-out prompts.
    """

    name: str
    description: str
    recipe: dict[str, Any]
    corpus: dict[str, Any]
    parameters: int
    weight_bytes: int
    tokens: int
    epochs: float
    steps: int
    seconds: float
    ended_by: str
    machine: dict[str, Any]
    validation_bits_per_byte: float
    lzma_bits_per_byte: float
    acceptance_by_depth: list[float] | None
    samples: list[Sample]

    @property
    def headline(self) -> str:
        """Its quality in a few words."""
        return f"{self.validation_bits_per_byte:.3f} bits per byte on validation files"


def make_card(
    recipe: Recipe, model: nn.Module, teacher: nn.Module | None, reached: Progress, material: Material, prompts: int = 16, samples: int = 3
) -> Card:
    """Measure an exported model on the validation and held-out files.

    Args:
        model: the exported weights, on the CPU.
        teacher: the model it drafts for, if any.
        reached: how training ended.
        prompts: held-out prompts to measure a draft's acceptance on.
        samples: how many of them to show with a continuation.
    """
    chosen = held_out_prompts(max(prompts, samples), files=material.held_out)
    acceptance = None
    if teacher is not None:
        ids = [encode(material.tokenizer, prompt.prefix) for prompt in chosen[:prompts]]
        acceptance = acceptance_by_depth(model, teacher.to("cpu"), ids)
    texts = [text.encode() for text in material.validation_texts]
    text_bytes = sum(map(len, texts))
    return Card(
        name=recipe.name,
        description=recipe.description,
        recipe=json.loads(json.dumps(asdict(recipe))),
        corpus=material.manifest.as_dict(),
        parameters=parameter_count(model),
        weight_bytes=2 * parameter_count(model),
        tokens=reached.tokens,
        epochs=round(reached.tokens / sum(map(len, material.train)), 3),
        steps=reached.step,
        seconds=round(reached.seconds, 1),
        ended_by=reached.ended_by,
        machine=machine_class(),
        validation_bits_per_byte=round(bits_per_byte(model, material.validation, text_bytes), 4),
        lzma_bits_per_byte=round(8 * sum(len(lzma.compress(text, preset=9)) for text in texts) / text_bytes, 4),
        acceptance_by_depth=None if acceptance is None else [round(rate, 4) for rate in acceptance],
        samples=[_sample(model, prompt, material) for prompt in chosen[:samples]],
    )


def machine_class() -> dict[str, Any]:
    """What kind of machine this is, without saying which one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    brand = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": brand,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_card(card: DataclassInstance, readme: str, folder: Path) -> None:
    """Write `card.json` and `README.md` into the model's folder."""
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README).write_text(readme, encoding="utf-8")


def render(card: Card) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    size = card.weight_bytes / 2**20
    minutes = card.seconds / 60
    rows: list[tuple[str, str]] = [
        ("Parameters", f"{card.parameters:,} ({size:.1f} MiB in bf16)"),
        (
            "Training",
            f"{card.tokens:,} tokens ({card.epochs:g} epochs), {card.steps:,} steps, {minutes:.0f} minutes, ended by {card.ended_by}",
        ),
        ("Machine", machine_line(card.machine)),
        ("Validation", f"**{card.validation_bits_per_byte:.3f} bits per byte** (xz -9 per file: {card.lzma_bits_per_byte:.3f})"),
    ]
    if card.acceptance_by_depth is not None:
        shown = ", ".join(f"{rate:.2f}" for rate in card.acceptance_by_depth)
        rows.append((f"Draft for {card.recipe['teacher']}", f"first d tokens accepted (greedy, held-out files), d = 1, 2, ...: {shown}"))
    samples = "\n".join(render_sample(sample) for sample in card.samples)
    return f"""{front_matter("text-generation")}
# {card.name}

{card.description}. A pocket model: made to measure decoding on real text with nothing to download, not to write programs for anyone.
Rebuild it with `paceline zoo build {card.name}`; `card.json` has the whole recipe.

{facts_table(rows)}

{data_section(card.corpus)}

{DETERMINISM}

## Greedy samples
Prompts are cut from held-out files; only their last lines are shown.
{samples}"""


DETERMINISM = """## Determinism
The corpus, its split, the tokenizer, the initial weights and the order of the data are fixed by seeds. The learning rate follows
the token budget or, under a time limit, the clock, whichever is ahead; the weights of a run that time ended therefore depend on the
speed of its machine."""


def front_matter(task: str, library: str = "transformers") -> str:
    """What model hubs read: their name of what the model does, and what loads it."""
    return f"""---
license: psf-2.0
library_name: {library}
pipeline_tag: {task}
tags: [code, python]
---"""


def facts_table(rows: list[tuple[str, str]]) -> str:
    """Two columns without a header."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def data_section(corpus: dict[str, Any]) -> str:
    """Where the text is from, and under which licence."""
    splits = ", ".join(f"{corpus['files'][split]:,} {split} files ({corpus['bytes'][split]:,} bytes)" for split in corpus["files"])
    return f"""## Data
{corpus["licence"]}, version {corpus["python"]}, as it comes with the interpreter: {splits}.
Files are split by a hash of their path, so held-out files are the same for everyone. SHA-256 of the file list: `{corpus["sha256"]}`.
The model is a derived work of that text and is shipped under the same licence."""


def machine_line(machine: dict[str, Any]) -> str:
    """Where the last session of a run took place, in words."""
    where = machine["gpu"] or f"{machine['cpu']}, threads in the last session of the run: {machine['threads']}"
    return f"{where}; Python {machine['python']}, torch {machine['torch']}"


def render_sample(sample: Sample) -> str:
    """A sample as Markdown."""
    # Four backticks: Python files may hold fences of three.
    blocks = (("prompt", sample.prompt_tail), ("model", sample.continuation), ("file", sample.truth))
    body = "\n".join(f"{label}:\n````python\n{text.rstrip()}\n````" for label, text in blocks)
    return f"\n### {sample.name}, line {sample.line}\n{body}\n"


def _sample(model: nn.Module, prompt: HeldOutPrompt, material: Material) -> Sample:
    ids = greedy_continuation(model, encode(material.tokenizer, prompt.prefix), SAMPLE_TOKENS)
    text = str(material.tokenizer.decode(ids, skip_special_tokens=True))
    tail = "".join(prompt.prefix.splitlines(keepends=True)[-6:])
    truth = "".join(prompt.continuation.splitlines(keepends=True)[: 1 + text.count("\n")])
    return Sample(prompt.name, prompt.line, tail, text, truth)

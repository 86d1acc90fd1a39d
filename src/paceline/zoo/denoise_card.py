"""The card of a diffusion model: a bound on its bits per byte, the share of problems it solves, and samples of code."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from paceline.zoo.card import DETERMINISM, Sample, data_section, facts_table, front_matter, machine_class, machine_line, render_sample
from paceline.zoo.denoise_course import kind_for, shape_of
from paceline.zoo.denoise_evaluation import bits_per_byte_bound, solved
from paceline.zoo.denoiser import save_denoiser, taken_over
from paceline.zoo.material import Material
from paceline.zoo.network import parameter_count
from paceline.zoo.prompts import HeldOutPrompt, held_out_prompts
from paceline.zoo.recipes import DenoiseRecipe
from paceline.zoo.training import Progress

PROBLEMS_PER_PROMPT = 4  # of each task, for every prompt that a card of a language model would be measured on
SAMPLES = 3
SAMPLE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class DenoiseCard:
    """Facts about a diffusion model; `card.json` holds exactly these fields.

    Attributes:
        recipe: the row of the recipe table, as data.
        corpus: the manifest of the standard library it was trained on.
        parameters, weight_bytes: count (tied embedding once) and size in bf16.
        start: the pocket model that training began with, and the share of parameters that came from it.
        tokens, steps, seconds: what training used; `ended_by` says whether tokens or time ended it.
        validation_bits_per_byte: upper bound over every validation file, by Monte Carlo, weights as exported.
        lzma_bits_per_byte: the same files under xz at its strongest, each file alone, for scale.
        problems: held-out problems per task.
        solved: share of them solved by static decoding, one position per step, by task.
    """

    name: str
    description: str
    recipe: dict[str, Any]
    corpus: dict[str, Any]
    parameters: int
    weight_bytes: int
    start: tuple[str, float] | None
    tokens: int
    steps: int
    seconds: float
    ended_by: str
    machine: dict[str, Any]
    validation_bits_per_byte: float
    lzma_bits_per_byte: float
    problems: int
    solved: dict[str, float]
    samples: list[Sample]

    @property
    def headline(self) -> str:
        """Its quality in a few words."""
        mean = sum(self.solved.values()) / len(self.solved)
        return f"at most {self.validation_bits_per_byte:.3f} bits per byte on validation files, {mean:.0%} of held-out problems solved"


def make_denoise_card(
    recipe: DenoiseRecipe, network: nn.Module, start: nn.Module | None, reached: Progress, material: Material, prompts: int
) -> DenoiseCard:
    """Measure an exported model on validation files and held-out problems, decoded by paceline as users will.

    Args:
        network: the exported weights, on the CPU.
        start: what training began with, if anything.
        reached: how training ended.
        prompts: how thoroughly to measure; each is worth `PROBLEMS_PER_PROMPT` problems of every task.
    """
    from paceline.engine.load import load

    kind, texts = kind_for(recipe), [text.encode() for text in material.validation_texts]
    size = sum(map(len, texts))
    with TemporaryDirectory() as made:
        folder = Path(made)
        save_denoiser(network, kind, folder)
        material.tokenizer.save_pretrained(folder)
        model = load(folder, "static", device="cpu", max_sequences=16, kv_tokens=16 * 1024)
        shares = solved(model, PROBLEMS_PER_PROMPT * prompts)
        samples = [_sample(model, prompt) for prompt in held_out_prompts(min(SAMPLES, prompts), files=material.held_out)]
    return DenoiseCard(
        name=recipe.name,
        description=recipe.description,
        recipe=json.loads(json.dumps(asdict(recipe))),
        corpus=material.manifest.as_dict(),
        parameters=parameter_count(network),
        weight_bytes=2 * parameter_count(network),
        start=None if start is None or recipe.start is None else (recipe.start, round(taken_over(kind, shape_of(recipe), start), 4)),
        tokens=reached.tokens,
        steps=reached.step,
        seconds=round(reached.seconds, 1),
        ended_by=reached.ended_by,
        machine=machine_class(),
        validation_bits_per_byte=round(bits_per_byte_bound(network, kind, material.validation, size), 4),
        lzma_bits_per_byte=round(8 * sum(len(lzma.compress(text, preset=9)) for text in texts) / size, 4),
        problems=PROBLEMS_PER_PROMPT * prompts,
        solved={task: round(share, 4) for task, share in shares.items()},
        samples=samples,
    )


def _sample(model: Any, prompt: HeldOutPrompt) -> Sample:
    room = model.engine.context - SAMPLE_TOKENS - 64
    ids = model.tokenizer.encode(prompt.prefix)[-min(512, room) :]
    text = model.generate([ids], max_tokens=SAMPLE_TOKENS)[0].text
    tail = "".join(prompt.prefix.splitlines(keepends=True)[-6:])
    truth = "".join(prompt.continuation.splitlines(keepends=True)[: 1 + text.count("\n")])
    return Sample(prompt.name, prompt.line, tail, text, truth)


def render_denoise(card: DenoiseCard) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    begun = "random weights" if card.start is None else f"`{card.start[0]}`, which provides {card.start[1]:.0%} of the parameters"
    rows = [
        ("Parameters", f"{card.parameters:,} ({card.weight_bytes / 2**20:.1f} MiB in bf16)"),
        ("Begun with", begun),
        ("Training", f"{card.tokens:,} tokens, {card.steps:,} steps, {card.seconds / 60:.0f} minutes, ended by {card.ended_by}"),
        ("Machine", machine_line(card.machine)),
        ("Validation", f"at most **{card.validation_bits_per_byte:.3f} bits per byte** (xz -9 per file: {card.lzma_bits_per_byte:.3f})"),
    ]
    table = "\n".join(["| task | solved |", "|---|--:|", *(f"| {task} | {share:.1%} |" for task, share in card.solved.items())])
    samples = "\n".join(render_sample(sample) for sample in card.samples)
    return f"""{front_matter("text-generation")}
# {card.name}

{card.description}. A pocket model: made to measure denoising on real text with nothing to download. Rebuild it with
`paceline zoo build {card.name}`; `card.json` has the whole recipe.

{facts_table(rows)}

## Problems
Generated problems that training never draws, {card.problems} of each task, decoded by `static` (one position per forward, greedy).

{table}

{data_section(card.corpus)}

{DETERMINISM}

## Greedy samples
Prompts are cut from held-out files; only their last lines are shown.
{samples}"""

"""The card of an editing model: how often it restores damaged spans of held-out files, by how much was damaged."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from paceline.zoo.card import DETERMINISM, data_section, facts_table, front_matter, machine_class, machine_line
from paceline.zoo.edit_evaluation import EditQuality, edit_quality
from paceline.zoo.editor import greedy_edits
from paceline.zoo.material import Material
from paceline.zoo.network import parameter_count
from paceline.zoo.pairs import EditPairs, padded
from paceline.zoo.recipes import EditRecipe
from paceline.zoo.training import Progress

RATES = (0.02, 0.05, 0.1, 0.2)
PAIRS_PER_PROMPT = 12  # pairs of each rate for every prompt that a card of a language model would be measured on
SAMPLES = 3


@dataclass(frozen=True, slots=True)
class EditSample:
    """A damaged held-out span, what the model made of it, and the original."""

    source: str
    output: str
    original: str


@dataclass(frozen=True, slots=True)
class EditCard:
    """Facts about an editing model; `card.json` holds exactly these fields.

    Attributes:
        recipe: the row of the recipe table, as data.
        corpus: the manifest of the standard library it was trained on.
        parameters, weight_bytes: count (tied embedding once) and size in bf16.
        tokens, steps, seconds: what training used; `ended_by` says whether tokens or time ended it.
        pairs: held-out pairs behind each row of `quality`.
        quality: by slip rate.
    """

    name: str
    description: str
    recipe: dict[str, Any]
    corpus: dict[str, Any]
    parameters: int
    weight_bytes: int
    tokens: int
    steps: int
    seconds: float
    ended_by: str
    machine: dict[str, Any]
    pairs: int
    quality: list[EditQuality]
    samples: list[EditSample]

    @property
    def headline(self) -> str:
        """Its quality in a few words."""
        first = self.quality[0]
        return f"{first.exact:.0%} of held-out spans restored exactly at a slip rate of {first.rate:.0%}"


def make_edit_card(recipe: EditRecipe, model: nn.Module, reached: Progress, material: Material, prompts: int) -> EditCard:
    """Measure an exported editing model on held-out files.

    Args:
        model: the exported weights, on the CPU.
        reached: how training ended.
        prompts: how thoroughly to measure; each is worth `PAIRS_PER_PROMPT` pairs of every rate.
    """
    data = EditPairs([file.text for file in material.held_out], material.tokenizer, recipe.seed)
    count = PAIRS_PER_PROMPT * prompts
    shown = data.pairs("samples", SAMPLES, 64)
    batch = padded(shown)
    outputs = greedy_edits(model, batch.source, 80)
    decode = material.tokenizer.decode
    return EditCard(
        name=recipe.name,
        description=recipe.description,
        recipe=json.loads(json.dumps(asdict(recipe))),
        corpus=material.manifest.as_dict(),
        parameters=parameter_count(model),
        weight_bytes=2 * parameter_count(model),
        tokens=reached.tokens,
        steps=reached.step,
        seconds=round(reached.seconds, 1),
        ended_by=reached.ended_by,
        machine=machine_class(),
        pairs=count,
        quality=[_rounded(edit_quality(model, data, rate, count)) for rate in RATES],
        samples=[EditSample(pair.source_text, str(decode(ids)), pair.target_text) for pair, ids in zip(shown, outputs, strict=True)],
    )


def render_edit(card: EditCard) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    lines = [
        "| slip rate | restored exactly | already right | token accuracy | distance of output | distance of source |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.rate:.0%} | {row.exact:.1%} | {row.untouched:.1%} | {row.accuracy:.2%} | {row.distance:.3f} | {row.source_distance:.3f} |"
        for row in card.quality
    ]
    quality = "\n".join(lines)
    facts = [
        ("Parameters", f"{card.parameters:,} ({card.weight_bytes / 2**20:.1f} MiB in bf16)"),
        ("Training", f"{card.tokens:,} target tokens, {card.steps:,} steps, {card.seconds / 60:.0f} minutes, ended by {card.ended_by}"),
        ("Machine", machine_line(card.machine)),
    ]
    # Plain fences: spans are cut out of their blocks, and formatters of Markdown would "correct" them as programs.
    samples = "\n".join(
        f"\n````text\n{sample.source}\n````\nbecomes\n````text\n{sample.output}\n````\noriginal:\n````text\n{sample.original}\n````"
        for sample in card.samples
    )
    return f"""{front_matter("text2text-generation")}
# {card.name}

{card.description}. A pocket model: made to measure decoding on a real editing task with nothing to download, not to proofread for anyone.
Rebuild it with `paceline zoo build {card.name}`; `card.json` has the whole recipe.

{facts_table(facts)}

## Quality
{card.pairs} spans of 1 to 8 lines of held-out files for each slip rate (share of words and marks that were hit), greedy decoding. Token
accuracy is teacher-forced; distances are token edit distances from the original, per original token.

{quality}

{data_section(card.corpus)}

{DETERMINISM}

## Samples
{samples}
"""


def _rounded(quality: EditQuality) -> EditQuality:
    return EditQuality(**{key: round(value, 4) for key, value in asdict(quality).items()})

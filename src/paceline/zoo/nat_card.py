"""The card of a non-autoregressive drafter: how much of its blocks the verifier accepts on held-out files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from paceline.models.nat import NatDrafter
from paceline.zoo.card import DETERMINISM, data_section, facts_table, front_matter, machine_class, machine_line
from paceline.zoo.distil import own_outputs
from paceline.zoo.material import Material
from paceline.zoo.nat_evaluation import draft_quality
from paceline.zoo.network import parameter_count
from paceline.zoo.pairs import EditPairs
from paceline.zoo.recipes import NatRecipe
from paceline.zoo.training import Progress

RATES = (0.02, 0.05, 0.1, 0.2)
PAIRS_PER_PROMPT = 4  # pairs of each rate for every prompt that a card of a language model would be measured on
LONGEST = 96
SHOWN_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Drafting:
    """Drafting at one slip rate; see `DraftQuality`."""

    rate: float
    tokens_per_call: float
    accepted_by_slot: list[float]


@dataclass(frozen=True, slots=True)
class NatCard:
    """Facts about a drafter; `card.json` holds exactly these fields.

    Attributes:
        recipe: the row of the recipe table, as data.
        corpus: the manifest of the standard library it was trained on.
        parameters, weight_bytes: count (the one embedding once) and size in bf16.
        tokens, steps, seconds: what training used; `ended_by` says whether tokens or time ended it.
        pairs: held-out sources behind each row of `drafting`.
        drafting: by slip rate, at beta = 1 and greedy decoding.
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
    drafting: list[Drafting]

    @property
    def headline(self) -> str:
        """Its quality in a few words."""
        first = self.drafting[0]
        return f"{first.tokens_per_call:.2f} tokens per verifier call on held-out files at a slip rate of {first.rate:.0%}"


def make_nat_card(
    recipe: NatRecipe, model: NatDrafter, verifier: nn.Module, reached: Progress, material: Material, prompts: int
) -> NatCard:
    """Measure an exported drafter on the verifier's outputs for held-out files.

    Args:
        model: the exported weights, on the CPU.
        verifier: whose drafter it is.
        reached: how training ended.
        prompts: how thoroughly to measure; each is worth `PAIRS_PER_PROMPT` sources of every rate.
    """
    texts = [file.text for file in material.held_out]
    drafting = []
    for rate in RATES:
        pairs = EditPairs(texts, material.tokenizer, recipe.seed, (rate, rate)).pairs(
            f"quality:{rate}", PAIRS_PER_PROMPT * prompts, LONGEST
        )
        outputs = own_outputs(verifier.to("cpu"), pairs, LONGEST)
        found = draft_quality(model, [pair.source for pair in pairs], outputs, model.config.block)
        drafting.append(Drafting(rate, round(found.tokens_per_call, 3), [round(share, 4) for share in found.accepted_by_slot]))
    return NatCard(
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
        pairs=PAIRS_PER_PROMPT * prompts,
        drafting=drafting,
    )


def render_nat(card: NatCard) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    facts = [
        ("Parameters", f"{card.parameters:,} ({card.weight_bytes / 2**20:.1f} MiB in bf16)"),
        (
            "Training",
            f"{card.tokens:,} decoder tokens, {card.steps:,} steps, {card.seconds / 60:.0f} minutes, ended by {card.ended_by}; "
            f"{card.recipe['pairs']:,} {'outputs of ' + card.recipe['teacher'] if card.recipe['distilled'] else 'references'}",
        ),
        ("Machine", machine_line(card.machine)),
    ]
    slots = " | ".join(f"slot {slot}" for slot in range(SHOWN_SLOTS))
    lines = [f"| slip rate | tokens per verifier call | {slots} |", "|---" * (2 + SHOWN_SLOTS) + "|"]
    for row in card.drafting:
        shares = " | ".join(f"{share:.2f}" for share in row.accepted_by_slot[:SHOWN_SLOTS])
        lines.append(f"| {row.rate:.0%} | **{row.tokens_per_call:.2f}** | {shares} |")
    table = "\n".join(lines)
    return f"""{front_matter("text2text-generation", "paceline")}
# {card.name}

{card.description}. It drafts, `{card.recipe["teacher"]}` verifies: `--draft {card.name} --method gad`. Source and target ids are those of
that model's tokenizer. Rebuild it with `paceline zoo build {card.name}`; `card.json` has the whole recipe.

{facts_table(facts)}

## Drafting
Greedy outputs for {card.pairs} sources from held-out files at each slip rate, beta = 1. A slot counts as accepted when it and all slots
before it are right.

{table}

{data_section(card.corpus)}

{DETERMINISM}
"""

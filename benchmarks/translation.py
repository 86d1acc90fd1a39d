"""Aggressive decoding on a task that is no copying: a drafter taught by the model's own outputs, and one taught by the references.

    python benchmarks/translation.py --json benchmarks/results     # the page's size: about half an hour on two cores
    python benchmarks/translation.py --quick                       # twenty steps each, to see that it runs: half a minute

64 symbols, a table, and windows of three in one of three orders, lengths 10 to 30 (`paceline.bench.translation`). The model (2 + 2 layers
of width 128) learns the references; one drafter of the same size, which fills 8 slots at once, learns what the model makes of the training
sources, and another of the same start and as many steps the references themselves. Expected at beta = 1: output identical to plain greedy
decoding with either; at least 2.5 tokens per call of the model with the first; visibly fewer with the second. Float32, batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console

from paceline.bench.edit_rounds import answer
from paceline.bench.report import Column, Record, render_table
from paceline.bench.translation import LONGEST, VOCABULARY, Translations
from paceline.core.errors import PacelineError
from paceline.engine.load import load
from paceline.models.nat import NatDrafter
from paceline.zoo.courses import Course
from paceline.zoo.distil import own_outputs
from paceline.zoo.edit_course import EditCourse
from paceline.zoo.nat_course import NatCourse
from paceline.zoo.nat_evaluation import draft_quality
from paceline.zoo.pairs import Pair
from paceline.zoo.recipes import EditRecipe, NatRecipe, Phase, Recipe
from paceline.zoo.training import Trainer

CPU = torch.device("cpu")
WIDTH, HEADS, LAYERS, BLOCK, POSITIONS = 128, 2, 2, 8, 64
ROWS = 64  # pairs per step
MAX_TOKENS = LONGEST + 10
TARGET_TOKENS = 21.0  # of a sentence on average, end-of-text included
_COMMON: dict[str, Any] = {"time_share": 1.0, "phases": (Phase(0.0, MAX_TOKENS),), "tokens_per_step": ROWS * MAX_TOKENS // 2}
_COMMON |= {"warmup_tokens": 60_000, "weight_decay": 0.0}
COLUMNS = [
    Column("drafter taught by", "taught_by", numeric=False),
    *(Column(name.replace("_", " "), name) for name in ("steps", "tokens_per_call", "forwards", "plain_forwards")),
    Column("first slots accepted", lambda row: " ".join(f"{share:.2f}" for share in row["accepted_by_slot"][:4]), numeric=False),
    Column("identical", lambda row: f"{row['identical']} of {row['sources']}"),
]


def verifier_recipe(steps: int) -> EditRecipe:
    """The model: a BART of 2 + 2 layers, for about so many steps."""
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 4 * WIDTH))
    }
    shape = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "d_model": WIDTH, "dropout": 0.0, **sides}
    tokens = int(steps * ROWS * TARGET_TOKENS)
    return EditRecipe("symbols", "translates symbols", shape, tokens, embedding_from=None, **_COMMON)


def drafter_recipe(steps: int) -> NatRecipe:
    """A drafter of the same size, for about so many steps."""
    layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn": 4 * WIDTH, "decoder_ffn": 4 * WIDTH}
    shape = {"vocabulary": VOCABULARY, "width": WIDTH, "heads": HEADS, "positions": POSITIONS, "block": BLOCK, "dropout": 0.0, **layers}
    tokens = int(steps * ROWS * (TARGET_TOKENS / 2 + BLOCK))  # the known prefix is half a sentence on average
    return NatRecipe("symbols-nat", "fills blocks of symbols", shape, tokens, teacher="symbols", **_COMMON)


def trained(recipe: Recipe, course: Course) -> tuple[torch.nn.Module, int]:
    """A network after its whole schedule, in evaluation mode, and its steps."""
    with TemporaryDirectory() as work:
        trainer = Trainer(recipe, course, Path(work), CPU, checkpoint_seconds=float("inf"))
        steps = trainer.run(resume=False).step
    return trainer.model.eval().requires_grad_(False), steps


def distilled(verifier: torch.nn.Module, references: Sequence[Pair]) -> list[Pair]:
    """The pairs with the model's own outputs for targets; where it does not come to an end, the reference stays."""
    outputs = own_outputs(verifier, list(references), MAX_TOKENS)
    return [pair if output is None else replace(pair, target=output) for pair, output in zip(references, outputs, strict=True)]


def compare(data: Translations, verifier: torch.nn.Module, steps: int, tests: Sequence[Pair]) -> list[dict[str, Any]]:
    """One row per drafter; calls of the model are counted along its known outputs and, once more, in the engine."""
    target = load(verifier, "none", dtype="float32", kv_tokens=4 * MAX_TOKENS, device="cpu")
    plain = answer(target, tests, MAX_TOKENS)
    rows: list[dict[str, Any]] = []
    recipe = drafter_recipe(steps)
    for name, material in (("the model's outputs", distilled(verifier, data.training)), ("references", data.training)):
        network, reached = trained(recipe, NatCourse(recipe, material, CPU, verifier))
        drafter = cast(NatDrafter, network)
        found = answer(load(target, f"gad:k={BLOCK}", draft=drafter, kv_tokens=4 * MAX_TOKENS, device="cpu"), tests, MAX_TOKENS)
        quality = draft_quality(drafter, [pair.source for pair in tests], own_outputs(verifier, list(tests), MAX_TOKENS), BLOCK)
        counts = {"forwards": found.forwards, "plain_forwards": plain.forwards, "sources": len(tests)}
        same = sum(mine == theirs for mine, theirs in zip(found.ids, plain.ids, strict=True))
        figures = {"tokens_per_call": quality.tokens_per_call, "accepted_by_slot": quality.accepted_by_slot, "identical": same}
        rows.append({"taught_by": name, "steps": reached, **figures, **counts})
    return rows


def main(
    verifier_steps: Annotated[int, typer.Option(help="training steps of the model")] = 3000,
    drafter_steps: Annotated[int, typer.Option(help="training steps of each drafter")] = 5000,
    pairs: Annotated[int, typer.Option(help="training pairs")] = 20_000,
    sources: Annotated[int, typer.Option(help="unseen sentences")] = 200,
    seed: Annotated[int, typer.Option(help="of the table and all sentences")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="20 steps each, 128 pairs, 8 sentences")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Train, measure, print a table, and write a record with --json."""
    console = Console(width=150)
    if quick:
        verifier_steps, drafter_steps, pairs, sources = 20, 20, 128, 8
    data = Translations(seed, pairs)
    tests = data.pairs("test", sources)
    try:
        recipe = verifier_recipe(verifier_steps)
        verifier, steps = trained(recipe, EditCourse(recipe, data, CPU))
        right = [data.is_right(pair.source, output) for pair, output in zip(tests, own_outputs(verifier, tests, MAX_TOKENS), strict=True)]
        rows = compare(data, verifier, drafter_steps, tests)
        console.print(render_table("tokens per call of the model, beta = 1", COLUMNS, rows))
        console.print(f"the model after {steps} steps: {sum(right)} of {sources} outputs are right translations")
        if json is not None:
            settings = {"pairs": pairs, "block": BLOCK, "width": WIDTH, "layers": [LAYERS, LAYERS], "batch": 1, "dtype": "float32"}
            extra = {"verifier": {"steps": steps, "right": sum(right) / sources}}
            console.print(f"wrote {Record('aggressive-translation', rows, settings, {'seed': seed}, extra=extra).write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

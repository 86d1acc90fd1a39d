"""Aggressive decoding on a real editing task: copying the source (IAD) and filling blocks (GAD), beside plain decoding.

    python benchmarks/aggressive.py speed --json benchmarks/results     # by edit rate and length: some minutes on two cores
    python benchmarks/aggressive.py quality --json benchmarks/results   # what beta and tau buy and cost: two minutes
    python benchmarks/aggressive.py ablation --json benchmarks/results  # drafters trained on outputs and on references: ten minutes
    python benchmarks/aggressive.py speed --quick                       # one rate, few sources: half a minute

Sources are spans of held-out files in which a share of the words and marks was hit by a typing slip; pocket-edit undoes slips, greedily,
at batch 1. Times are whole answers, encoder and drafter included; speed-ups are medians over rounds in which contenders take turns. What
to expect: IAD at least 4 times fewer forwards at low edit rates, shrinking as the rate grows, and slower than plain decoding only where
most of what it drafts is wasted; GAD needs no verbatim copy, but its drafter costs time in every step; output identical to plain decoding
except where two logits nearly tie. With beta above 1 tokens per forward rise and agreement with greedy output falls. Run on a quiet
machine. `benchmarks/translation.py` is the same question for outputs that are no copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console

from paceline.bench.edit_rounds import Answers, answer, answer_by_transformers, cell, rounds
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.core.errors import CheckpointError, PacelineError
from paceline.engine.load import load
from paceline.models.nat import NatDrafter
from paceline.zoo.corpus import Split, held_out_files, stdlib_files
from paceline.zoo.distil import own_outputs
from paceline.zoo.edit_evaluation import edit_distance
from paceline.zoo.editor import load_editor
from paceline.zoo.nat_course import NatCourse
from paceline.zoo.nat_evaluation import draft_quality
from paceline.zoo.pairs import EditPairs, Pair
from paceline.zoo.recipes import RECIPES, NatRecipe
from paceline.zoo.registry import resolve
from paceline.zoo.tokenizer import load_tokenizer
from paceline.zoo.training import Trainer

METHODS = "none,prompt-lookup,iad,gad"
PEER = "transformers"
LONGEST = 96  # tokens of an original; sources are a little longer
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(width=170)
Model = Annotated[str, typer.Option(help="editing model: pocket model or checkpoint folder")]
Draft = Annotated[str, typer.Option(help="non-autoregressive drafter")]
Json = Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")]
Seed = Annotated[int, typer.Option(help="of spans and slips")]
Quick = Annotated[bool, typer.Option(help="few sources, one round")]


def held_out_pairs(folder: Path, rate: float, count: int, seed: int) -> list[Pair]:
    """Damaged spans of files that no pocket model has seen."""
    data = EditPairs([file.text for file in held_out_files()], load_tokenizer(folder), seed, (rate, rate))
    return data.pairs(f"bench:{rate}", count, LONGEST)


def report(record: Record, columns: list[Column], json: Path | None) -> None:
    """Print the rows, and write the record if asked to."""
    console.print(render_table(record.name, columns, record.rows))
    if json is not None:
        console.print(f"wrote {record.write(json)}")


@app.command()
def speed(
    model: Model = "pocket-edit",
    draft: Draft = "pocket-edit-nat",
    methods: Annotated[str, typer.Option(help="separated by commas; none must be among them")] = METHODS,
    rates: Annotated[str, typer.Option(help="shares of words hit, in per cent")] = "2,5,10,20",
    lengths: Annotated[str, typer.Option(help="upper bounds on the original's tokens, one cell each")] = "16,40,96",
    sources: Annotated[int, typer.Option(help="per cell")] = 24,
    repeats: Annotated[int, typer.Option(help="timed rounds")] = 5,
    dtype: Annotated[str | None, typer.Option(help="of the model; by default what load chooses")] = None,
    peer: Annotated[bool, typer.Option(help="measure transformers too")] = True,
    json: Json = None,
    seed: Seed = 0,
    quick: Quick = False,
) -> None:
    """Forwards, tokens per forward and time of every method, by edit rate and length of the original."""
    if quick:
        rates, sources, repeats = "5", 6, 2
    folder = folder_of(model)
    target = load(str(folder), "none", dtype=dtype)
    contenders: dict[str, Callable[[Sequence[Pair]], Answers]] = {}
    extra: dict[str, int] = {}  # bytes of weights besides the model's own
    for method in methods.split(","):
        llm = load(target, method, draft=draft if "gad" in method else None)
        contenders[method] = partial(answer, llm)
        extra[method] = llm.ledger.live["weights"] - target.ledger.live["weights"]
    if peer:
        contenders[PEER] = partial(answer_by_transformers, load_editor(folder))
    rows: list[dict[str, Any]] = []
    bounds = [int(length) for length in lengths.split(",")]
    for rate in (float(share) / 100 for share in rates.split(",")):
        pairs = held_out_pairs(folder, rate, 40 * sources, seed)
        for shorter, bound in zip([0, *bounds], bounds, strict=False):
            chosen = [pair for pair in pairs if shorter < len(pair.target) <= bound][:sources]
            distance = sum(edit_distance(pair.source, pair.target) for pair in chosen) / max(1, sum(len(pair.target) for pair in chosen))
            facts = {"rate": rate, "longest": bound, "token_distance": distance}
            rows += [facts | row for row in cell(rounds(contenders, chosen, repeats), chosen)]
    columns = [
        Column("edit rate", lambda row: f"{row['rate']:.0%}"),
        Column("tokens up to", "longest"),
        Column("method", "method", numeric=False),
        Column("forwards", "forwards"),
        Column("tokens/forward", lambda row: f"{row['tokens_per_forward']:.2f}" if "forwards" in row else ""),
        Column("rows/forward", lambda row: f"{row['rows_per_forward']:.1f}" if "forwards" in row else ""),
        Column("drafts wasted", lambda row: f"{row['wasted']:.0%}" if row.get("wasted") is not None else ""),
        Column("ms/answer", lambda row: f"{row['milliseconds']:.1f}"),
        Column("speed-up", lambda row: f"{row['speedup']:.2f}x"),
        Column("draft share", lambda row: f"{row['draft_share']:.0%}" if "forwards" in row else ""),
        Column("identical", lambda row: f"{row['identical']} of {row['sources']}"),
    ]
    settings = {"model": public_name(model), "draft": public_name(draft), "methods": methods, "sources": sources, "repeats": repeats}
    settings |= {"batch": 1, "rates": rates, "lengths": lengths, "dtype": str(target.runner.decoder.dtype).removeprefix("torch.")}
    notes = [
        "Times are whole answers: encoder, drafter and the first token included.",
        "Outputs may differ from plain decoding at near-ties.",
    ]
    notes += ["transformers decodes in float32."] if peer else []
    record = Record("aggressive-speed", rows, settings, {"seed": seed}, notes=notes, extra={"drafter_weight_bytes": extra})
    report(record, columns, json)
    for method, size in extra.items():
        if size:
            console.print(f"{method}: {size / 2**20:.1f} MiB of weights besides the model's own")


@app.command()
def quality(
    model: Model = "pocket-edit",
    draft: Draft = "pocket-edit-nat",
    betas: Annotated[str, typer.Option(help="separated by commas")] = "1,3,5",
    taus: Annotated[str, typer.Option(help="separated by commas")] = "0,1,3",
    rate: Annotated[float, typer.Option(help="share of words hit")] = 0.1,
    sources: Annotated[int, typer.Option(help="held-out spans")] = 96,
    json: Json = None,
    seed: Seed = 0,
    quick: Quick = False,
) -> None:
    """Tokens per forward against agreement with greedy output and with the original, by beta and tau."""
    folder = folder_of(model)
    pairs = held_out_pairs(folder, rate, 12 if quick else sources, seed)
    target = load(str(folder), "none", dtype="float32")  # agreement with greedy output should not measure rounding
    greedy = answer(target, pairs)
    rows: list[dict[str, Any]] = []
    for beta, tau in product((int(value) for value in betas.split(",")), (float(value) for value in taus.split(","))):
        found = answer(load(target, f"gad:beta={beta},tau={tau:g}", draft=draft), pairs)
        tokens = sum(len(ids) + 1 for ids in found.ids)
        rows.append(
            {
                "beta": beta,
                "tau": tau,
                "tokens_per_forward": tokens / found.forwards,
                "equal_to_greedy": sum(a == b for a, b in zip(found.ids, greedy.ids, strict=True)) / len(pairs),
                "equal_to_original": sum(ids == pair.target for ids, pair in zip(found.ids, pairs, strict=True)) / len(pairs),
                "distance_from_original": _distance(found.ids, pairs),
            }
        )
    baseline = {
        "equal_to_original": sum(ids == pair.target for ids, pair in zip(greedy.ids, pairs, strict=True)) / len(pairs),
        "distance_from_original": _distance(greedy.ids, pairs),
    }
    columns = [Column(name, name) for name in ("beta", "tau", "tokens_per_forward")]
    columns += [Column(name, partial(_share, name)) for name in ("equal_to_greedy", "equal_to_original")]
    columns.append(Column("distance_from_original", lambda row: f"{row['distance_from_original']:.4f}"))
    settings = {"model": public_name(model), "draft": public_name(draft), "rate": rate, "sources": len(pairs)}
    notes = ["beta = 1 is exact matching, whatever tau is; larger ones are approximate and labelled bounded."]
    record = Record("aggressive-quality", rows, settings, {"seed": seed}, notes=notes, extra={"greedy": baseline})
    report(record, columns, json)
    console.print(
        f"greedy: {_share('equal_to_original', baseline)} equal to the original, distance {baseline['distance_from_original']:.4f}"
    )


@app.command()
def ablation(
    model: Model = "pocket-edit",
    steps: Annotated[int, typer.Option(help="full steps' worth of training tokens; whole pairs fill steps less, so more are taken")] = 300,
    pairs: Annotated[int, typer.Option(help="training pairs")] = 4000,
    sources: Annotated[int, typer.Option(help="held-out spans to draft for")] = 64,
    json: Json = None,
    seed: Seed = 0,
    quick: Quick = False,
) -> None:
    """Two drafters of one recipe, trained equally long: on the verifier's outputs, and on the references."""
    folder = folder_of(model)
    verifier = load_editor(folder)
    usual = cast(NatRecipe, RECIPES["pocket-edit-nat"])
    count, length = (64, 3) if quick else (pairs, steps)
    tokens = length * usual.tokens_per_step
    recipe = replace(usual, tokens=tokens, warmup_tokens=min(usual.warmup_tokens, tokens // 8))
    data = EditPairs([file.text for file in stdlib_files(split=Split.TRAIN)], load_tokenizer(folder), recipe.seed, recipe.rates)
    references = data.pairs("distil", count, LONGEST)
    outputs = own_outputs(verifier, references, LONGEST)
    distilled = [pair if output is None else replace(pair, target=output) for pair, output in zip(references, outputs, strict=True)]
    tests = held_out_pairs(folder, 0.05, 8 if quick else sources, seed)
    wanted = own_outputs(verifier, tests, LONGEST)
    rows: list[dict[str, Any]] = []
    for name, material in (("verifier's outputs", distilled), ("references", references)):
        with TemporaryDirectory() as work:
            trainer = Trainer(recipe, NatCourse(recipe, material, torch.device("cpu"), verifier), Path(work), torch.device("cpu"))
            reached = trainer.run(resume=False)
        found = draft_quality(cast(NatDrafter, trainer.model), [pair.source for pair in tests], wanted, trainer.model.config.block)  # type: ignore[union-attr, arg-type]
        rows.append(
            {"trained on": name, "steps": reached.step, "tokens_per_call": found.tokens_per_call, "first slot": found.accepted_by_slot[0]}
        )
    changed = sum(one.target != other.target for one, other in zip(distilled, references, strict=True)) / count
    settings = {"model": public_name(model), "steps": length, "pairs": count, "targets_that_differ": changed}
    columns = [Column(name, name) for name in ("trained on", "steps", "tokens_per_call", "first slot")]
    report(Record("aggressive-ablation", rows, settings, {"seed": seed}), columns, json)


def folder_of(model: str) -> Path:
    """Folder of a pocket model or of a checkpoint.

    Raises:
        CheckpointError: if there is none.
    """
    folder = resolve(model) or Path(model)
    if not folder.is_dir():
        raise CheckpointError(f"{model!r} is neither a built pocket model nor a folder; make it with `paceline zoo build {model}`")
    return folder


def _distance(outputs: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
    """Token edit distance from the originals, per original token."""
    total = sum(edit_distance(ids, pair.target) for ids, pair in zip(outputs, pairs, strict=True))
    return total / sum(len(pair.target) for pair in pairs)


def _share(name: str, row: Mapping[str, Any]) -> str:
    return f"{row[name]:.1%}"


if __name__ == "__main__":
    try:
        app(standalone_mode=False)
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise SystemExit(error.exit_code) from None

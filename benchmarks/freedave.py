"""FreeDave: forwards, tokens per forward, rows fed and time, and whether the tokens are those of the decoder drafted for.

    python benchmarks/freedave.py --json benchmarks/results      # both toy models, 200 prompts, float64: some twenty minutes on one core
    python benchmarks/freedave.py --quick                        # weak model, 20 prompts, few rows: two minutes
    python benchmarks/freedave.py --model pocket-dlm --prompts 40            # held-out problems, answers of 64 tokens, in float32
    python benchmarks/freedave.py --model pocket-dlm --prompts 20 --dtype fp64 --quick   # the same tokens whatever rounding does

Expected on the toy models (sort up to eight digits, 24 tokens, blocks of 8): identical in every row that promises it, about 15 forwards for
24 with 2 drafts, 11 with 4, 10 with 8. Rows fed rise, so that on hardware where rows cost time, time falls less than forwards, or not at
all: `time` is that of the decoder drafted for over that of FreeDave, and the last lines say where it is ahead. `sequential` spends a
forward per draft: its forwards are not comparable and its rows are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline.bench.denoising_grounds import TOYS, Ground, text, toy
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, Record, public_name, render_table
from paceline.core import registry
from paceline.core.errors import PacelineError
from paceline.denoising.learn2pd_filter import file_name

DRAFTS = (1, 2, 4, 8)
CACHES = ("none", "prefix", "dual")
QUICK = [f"drafts={count}" for count in (2, 8)]
COLUMNS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("same as", "twin", numeric=False),
    Column("identical", lambda row: "" if row["same"] is None else f"{row['same']:.0%}"),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("fewer", lambda row: f"{row['fewer']:.2f}x"),
    Column("most", lambda row: "" if row["most"] is None else f"{row['most']:+d}"),
    Column("tokens/forward", lambda row: f"{row['advance']:.2f}"),
    Column("rows fed", lambda row: f"{row['rows']:.0f}"),
    Column("right", lambda row: f"{row['exact']:.2f}"),
    Column("agree", lambda row: f"{row['agree']:.3f}"),
    Column("seconds", lambda row: f"{row['seconds']:.2f}"),
    Column("time", lambda row: f"{row['speed']:.2f}x"),
]


def methods_of(ground: Ground, quick: bool) -> list[str]:
    """What is measured on a ground, the block left out."""
    if quick:
        return [f"freedave:{options}" for options in QUICK]
    caches = ("none",) if ground.causal else CACHES
    wide = [] if ground.causal else ["freedave:drafts=4,attention=sparsed"]
    folder = ground.model.runner.decoder.folder
    filtered = ["freedave:drafts=4,filter=model"] if folder is not None and (folder / file_name(ground.block)).is_file() else []
    return [
        *(f"freedave:cache={cache},drafts={count}" for cache in caches for count in DRAFTS),
        *(f"freedave:drafts=4,mode={mode}" for mode in ("tree", "sequential")),
        *(f"freedave:drafts={count},eager=true" for count in (4, 8)),
        "freedave:drafts=4,per_step=2",
        *(f"freedave:drafts={count},threshold=0.9" for count in (1, 4)),
        "freedave:drafts=4,threshold=0.9,match=exact",
        "freedave:drafts=4,threshold=0.9,radius=4",
        "freedave:drafts=4,guidance=0.5",
        *wide,
        *filtered,
    ]


def rows_of(ground: Ground, batch: int, seed: int, quick: bool, console: Console) -> list[dict[str, Any]]:
    """One row per method; the decoders drafted for are measured once each."""
    runs: dict[str, Run] = {}
    methods = ["static", *methods_of(ground, quick)]

    def run(method: str) -> Run:
        if method not in runs:
            with console.status(f"{public_name(ground.name)}: {method.partition(',store')[0]} ({len(runs)} methods done)"):
                runs[method] = run_method(ground.model, method, ground.prompts, ground.length, batch)
        return runs[method]

    reference = run(ground.method("static"))
    found = []
    for short in methods:
        method = ground.method(short)
        mine = run(method)
        (choice,) = registry.parse(method)
        twin = getattr(choice.config(), "twin", None)
        plain = run(twin) if twin is not None else reference
        answers = [tokens if ground.right(index, tokens) else () for index, tokens in enumerate(mine.tokens)]
        same = [one == other for one, other in zip(mine.tokens, plain.tokens, strict=True)]
        more = [one - other for one, other in zip(mine.forwards, plain.forwards, strict=True)]
        row = row_of(mine, reference, answers, seed)
        own = {
            "model": public_name(ground.name),
            "twin": "" if twin is None else _short(twin, method),
            "same": None if twin is None else sum(same) / len(same),
            "most": None if twin is None else max(more),
            "fewer": sum(plain.forwards) / sum(mine.forwards),
            "speed": plain.seconds / mine.seconds,
            "advance": ground.length * len(mine.tokens) / sum(mine.forwards),
            "advances": dict(sorted(Counter(length for lengths in mine.runs for length in lengths).items())),
        }
        found.append(row | own)
    return found


def _short(twin: str, method: str) -> str:
    """The decoder drafted for, with the options that say which it is."""
    own, _, shared = twin.partition(",block=")
    return ",".join([own, *(entry for entry in shared.split(",")[1:] if entry in method)])


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on one model: identity, forwards, and where time falls as well."""
    name = rows[0]["model"]
    promised = [row for row in rows[1:] if row["same"] is not None]
    broken = [row["method"] for row in promised if row["same"] < 1]
    shared = [row for row in promised if "sequential" not in row["method"]]
    over = [row["method"] for row in shared if row["most"] > 0]
    own = [row for row in shared if row["twin"].startswith("static:per_step=1")]
    best = max(own, key=lambda row: row["fewer"])
    quick = [row for row in shared if row["speed"] > 1]
    fastest = max(shared, key=lambda row: row["speed"])
    return [
        f"{name}: {len(promised) - len(broken)} of {len(promised)} rows that promise it have every token of the decoder drafted for"
        + (f"; not {', '.join(broken)}" if broken else "")
        + (f"; more forwards for some answer: {', '.join(over)}" if over else "; no answer takes more forwards"),
        f"{name}: {best['method']} takes {best['fewer']:.2f} times fewer forwards than its static decoder, {best['same']:.0%} identical",
        f"{name}: time falls too in {len(quick)} of {len(shared)} rows, most with {fastest['method']} ({fastest['speed']:.2f}x)",
    ]


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(TOYS)} (trained here), or checkpoints, separated by commas")] = "weak,good",
    prompts: Annotated[int, typer.Option(help="prompts per model")] = 200,
    length: Annotated[int, typer.Option(help="tokens per answer of a checkpoint")] = 64,
    batch: Annotated[int, typer.Option(help="prompts decoded together")] = 1,
    seed: Annotated[int, typer.Option(help="of weights, data and intervals")] = 0,
    single: Annotated[bool, typer.Option("--single", help="toy models in float32, where near-ties may differ between forwards")] = False,
    dtype: Annotated[str | None, typer.Option(help="of a checkpoint; fp64 leaves rounding no say")] = None,
    quick: Annotated[bool, typer.Option(help="weak model, 20 prompts, few rows")] = False,
    json: Annotated[Path | None, typer.Option(help="write the record to this file, or under its own name to this folder")] = None,
) -> None:
    """Measure, print the table, and write a record with --json."""
    console = Console(width=200)
    names = ["weak"] if quick and model == "weak,good" else model.split(",")
    count = min(prompts, 20) if quick else prompts
    told: list[str] = []
    try:
        rows = []
        for name in names:
            with console.status(f"preparing {name}"):
                ground = toy(name, count, seed, double=not single) if name in TOYS else text(name, count, length, seed, dtype=dtype)
            rows.extend(own := rows_of(ground, batch, seed, quick, console))
            told += verdicts(own)
        console.print(
            render_table("FreeDave, per answer; `most`: largest difference in forwards to the decoder drafted for", COLUMNS, rows)
        )
        for row in rows:
            if row["advances"].keys() - {1}:
                console.print(f"{row['model']} {row['method']}: forwards by tokens decided {row['advances']}", style="dim")
        for sentence in told:
            console.print(sentence, soft_wrap=True)
        if json is not None:
            settings = {"models": [public_name(name) for name in names], "prompts": count, "batch": batch, "double": not single}
            record = Record("freedave", rows, settings | {"dtype": dtype}, {"seed": seed}, notes=told)
            console.print(f"wrote {record.write(json)}")
    except PacelineError as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)

"""Commit rules against the frontier of plain thresholds: what each costs in quality at the number of forwards it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline.bench.denoising_frontier import Scored, agreement, lead
from paceline.bench.denoising_grounds import Ground
from paceline.bench.denoising_rows import Run, row_of, run_method
from paceline.bench.report import Column, public_name

THRESHOLDS = (0.98, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
LEAST = 3.0  # times fewer forwards than static decoding: what verdicts are about
PLAIN = "threshold"  # the family whose frontier the others are held against
Rows = Sequence[Mapping[str, Any]]
Tell = Callable[[str, int, int], None]  # what is being run, runs done, runs in all


@dataclass(frozen=True, slots=True)
class Rival:
    """A way of decoding that is compared.

    Args:
        family: rules of one kind; `threshold` is what the others are held against.
        method: method string, the block left out; the first rival is the reference, static decoding.
        shown: what tables call it.
    """

    family: str
    method: str
    shown: str = ""


def thresholds(few: bool = False) -> list[Rival]:
    """The plain family, from strict to lax."""
    return [Rival(PLAIN, f"threshold:threshold={bar}") for bar in (THRESHOLDS[2::2] if few else THRESHOLDS)]


def rival_rows(ground: Ground, rivals: Sequence[Rival], batch: int, seed: int, tell: Tell) -> list[dict[str, Any]]:
    """One row per rival, with its lead over plain thresholds at equal forwards: of tokens that agree with static decoding, and of right
    answers.

    Args:
        ground: what is decoded.
        rivals: the first is the reference.
        batch: prompts decoded together.
        seed: of the bootstrap.
        tell: progress.
    """
    runs: list[Run] = []
    for index, rival in enumerate(rivals):
        tell(f"{ground.name}: {rival.shown or rival.method}", index, len(rivals))
        runs.append(run_method(ground.model, ground.method(rival.method), ground.prompts, ground.length, batch))
    reference = runs[0]
    scored = [(agreement(run, reference), _rightness(ground, run)) for run in runs]
    frontier = [own for rival, own in zip(rivals, scored, strict=True) if rival.family == PLAIN]
    rows = []
    for rival, run, (agreeing, right) in zip(rivals, runs, scored, strict=True):
        answers = [tokens if hit else () for tokens, hit in zip(run.tokens, right.scores, strict=True)]
        row = row_of(run, reference, answers, seed) | {
            "model": public_name(ground.name),
            "family": rival.family,
            "method": rival.shown or rival.method,
            "fewer": sum(reference.forwards) / sum(run.forwards),
            "per_token": sum(run.forwards) / sum(ground.said(tokens) for tokens in run.tokens),
        }
        for index, (name, mine) in enumerate((("lead", agreeing), ("lead_right", right))):
            held = None if rival.family in (PLAIN, "static") else lead(mine, [own[index] for own in frontier], seed)
            row |= {name: None if held is None else held[0], f"{name}_interval": None if held is None else held[1]}
        rows.append(row)
    return rows


def _rightness(ground: Ground, run: Run) -> Scored:
    hits = [float(ground.right(index, tokens)) for index, tokens in enumerate(run.tokens)]
    return Scored(np.array(run.forwards, dtype=float), np.array(hits))


def verdicts(rows: Rows, families: Sequence[str]) -> list[str]:
    """Sentences on one model: what each family costs where it takes a third of static decoding's forwards or fewer, and its best lead."""
    told = []
    (static, *_) = [row for row in rows if row["family"] == "static"]
    for family in (*families, PLAIN):
        fast = [row for row in rows if row["family"] == family and row["fewer"] >= LEAST]
        if not fast:
            told.append(f"{static['model']}: no setting of {family} takes {LEAST:g} times fewer forwards than static decoding")
            continue
        best = max(fast, key=lambda row: (row["agree"], row["exact"]))
        told.append(
            f"{static['model']}: {best['method']} takes {best['fewer']:.1f} times fewer forwards than static decoding; right "
            f"{best['exact']:.3f} against {static['exact']:.3f}, {best['agree']:.4f} of the tokens those of static decoding (best of "
            f"{len(fast)} settings of {family} that take {LEAST:g} times fewer)"
        )
    for family in families:
        held = [row for row in rows if row["family"] == family and row["lead"] is not None]
        if not held:
            told.append(f"{static['model']}: no setting of {family} takes a number of forwards between those of the thresholds")
            continue
        ahead, behind = (sum(sign * row["lead_interval"][side] > 0 for row in held) for sign, side in ((1, 0), (-1, 1)))
        best = max(held, key=lambda row: row["lead_interval"][0])
        told.append(
            f"{best['model']}: of {len(held)} settings of {family}, {ahead} agree measurably more with static decoding than thresholds at "
            f"equal forwards, {behind} less; best {best['method']}, {best['lead']:+.4f} of the tokens "
            f"({best['lead_interval'][0]:+.4f} to {best['lead_interval'][1]:+.4f})"
        )
    return told


def _interval(name: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
    def cell(row: Mapping[str, Any]) -> str:
        if row[name] is None:
            return ""
        low, high = row[f"{name}_interval"]
        sign = "+" if name.startswith("lead") else ""
        return f"{row[name]:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"

    return cell


COLUMNS = [
    Column("model", "model", numeric=False),
    Column("method", "method", numeric=False),
    Column("forwards", lambda row: f"{row['forwards']:.2f}"),
    Column("fewer", lambda row: f"{row['fewer']:.2f}x"),
    Column("per token said", lambda row: f"{row['per_token']:.3f}"),
    Column("right", _interval("exact", 3)),
    Column("identical", lambda row: f"{row['identical']:.3f}"),
    Column("agree", lambda row: f"{row['agree']:.4f}"),
    Column("lead", _interval("lead", 4)),
    Column("lead in right answers", _interval("lead_right", 3)),
]

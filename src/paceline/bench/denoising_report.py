"""The part of denoising benchmarks that a trained model is asked text in: measured, shown as a table and pictures, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paceline.bench.denoising_pareto import mark_unbeaten, plot_pareto
from paceline.bench.denoising_text import TEXT_COLUMNS, TextSettings, fitting, open_text, text_rows
from paceline.bench.report import Record, public_name, render_table

if TYPE_CHECKING:
    from rich.console import Console


def report_text(
    console: Console,
    checkpoints: Sequence[str],
    methods: Sequence[str],
    settings: TextSettings,
    *,
    name: str,
    json: Path | None = None,
    pictures: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure checkpoints and tell: a table each, with what no other method beats, pictures of it, and a record.

    Args:
        console: tables go there; progress is shown where somebody watches.
        checkpoints: diffusion models with a tokenizer.
        methods: those that a checkpoint refuses are left out of its table, and named.
        settings: what is measured.
        name: of the benchmark.
        json: file or folder of the record, which is written anew after each length and batch: such runs take hours.
        pictures: folder.

    Returns:
        All rows.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for checkpoint in checkpoints:
        model = open_text(checkpoint)
        kept, refused = fitting(model, methods)
        if refused:
            notes.append(f"{public_name(model.name)} refuses {'; '.join(refused)}")
            console.print(notes[-1], soft_wrap=True)
        own: list[dict[str, Any]] = []
        told = asdict(settings) | {"models": [public_name(each) for each in checkpoints], "threads": torch.get_num_threads()}
        with console.status(f"asking {model.name}") as status:
            for cell in text_rows(model, kept, settings, lambda label, done, turns: status.update(f"{label} ({done} of {turns})")):
                mark_unbeaten(cell)
                own += cell
                if json is not None:
                    written = Record(f"{name}-text", rows + own, told, {"seed": settings.seed}, notes=notes).write(json)
        rows += own
        title = f"{public_name(model.name)}: {settings.prompts} questions, half problems, half code; 95 % bootstrap intervals over prompts"
        console.print(render_table(title, TEXT_COLUMNS, own))
        if pictures is not None:
            for path in plot_pareto(own, pictures, f"{name}-{Path(public_name(model.name)).name}"):
                console.print(f"wrote {path}", soft_wrap=True)
        if json is not None:
            console.print(f"wrote {written}", soft_wrap=True)
    return rows

"""`paceline demo`: the pocket code model completes held-out Python files, plainly and accelerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import options
from paceline.cli.console import err, out, print_json
from paceline.core.errors import AuditFailure, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from paceline.demo.result import Demo
    from paceline.engine.llm import LLM

MODEL, DRAFT = "pocket-code", "pocket-code-draft"
# Not greedy: a model this small soon repeats itself then, and repetitions are too easy to draft to show anything.
TEMPERATURE, TOP_P = 0.8, 0.95
FULL = {"files": 6, "tokens": 160, "repeats": 3}
QUICK = {"files": 2, "tokens": 48, "repeats": 1}


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Two files and 48 tokens, in a few seconds.")] = False,
    out_folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where demo.json, demo.png and demo.html go.")] = Path(
        "paceline-demo"
    ),
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Who completes.", rich_help_panel=options.RUN)] = MODEL,
    method: options.Method = "auto",
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL", help=f"Default: {DRAFT} for {MODEL}, none for others.", rich_help_panel=options.RUN),
    ] = None,
    temperature: options.Temperature = TEMPERATURE,
    top_p: options.TopP = TOP_P,
    seed: options.Seed = 0,
    dtype: options.Dtype = "fp32",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Complete real files that the model never saw, twice: plainly and accelerated. Shows speed, identity, and every drafted token."""
    from paceline.core.sampling import Sampling
    from paceline.zoo.prompts import held_out_prompts

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    size = QUICK if quick else FULL
    chosen = draft or (DRAFT if model == MODEL else None)
    plain = options.open_model(model, "none", dtype=dtype, device=device, prefix_cache=False, sequences=1)
    if plain.tokenizer is None:
        raise UsageError(f"{model!r} has no tokenizer, and the demo completes text; choose another --model")
    _check_folder(out_folder)
    from paceline.demo.measure import run_demo, settle

    prompts = held_out_prompts(size["files"])
    with _progress(silent=json) as report:
        report("measuring this machine")
        settle(plain, prompts[0], sampling)  # before loading the method, which may measure too
        llm = accelerated(plain, method, chosen)
        result = run_demo(llm, plain, prompts, size["tokens"], size["repeats"], chosen, sampling, report)
    record = _write(result, out_folder, report=not json)
    if json:
        print_json(record)
    if result.violated:
        raise AuditFailure("accelerated output differs from plain decoding; run `paceline audit` for the whole examination")


def accelerated(plain: LLM, method: str, draft: str | None) -> LLM:
    """The weights of `plain` with a method, coupled so that samples must agree."""
    from paceline.engine.load import load

    device = plain.runner.decoder.device
    return load(plain, method, draft=draft, device=device, coupled=True, max_sequences=1, prefix_cache=False)


def demo_table(result: Demo) -> Table:
    """One row per file, totals below."""
    from rich.table import Table

    title = f"{result.model}, method {result.method}" + (f", draft {result.draft}" if result.draft else "") + f", {result.dtype}"
    table = Table(title=title, title_justify="left", show_footer=True, footer_style="bold", box=None, header_style="bold", pad_edge=False)
    table.add_column("held-out file", footer="all", overflow="fold")
    cells = (
        ("plain\ntok/s", f"{result.total('plain'):.0f}"),
        ("fast\ntok/s", f"{result.total('fast'):.0f}"),
        ("speed-\nup", f"{result.speed_up:.2f}x"),
        ("tokens/\nforward", f"{result.tokens_per_forward:.2f}"),
        ("drafts\naccepted", f"{100 * result.acceptance:.0f} %"),
        ("audit of\ntokens", f"{result.identical}/{len(result.completions)} identical"),
    )
    for heading, footer in cells:
        table.add_column(heading, footer=footer, justify="left" if heading.startswith("audit") else "right")
    for entry in result.completions:
        stats = entry.fast.stats
        colour = {"identical": "green", "tie": "yellow", "violation": "red"}[entry.verdict.kind]
        table.add_row(
            f"{entry.prompt.name}:{entry.prompt.line}",
            f"{entry.plain.stats.tokens_per_second:.0f}",
            f"{stats.tokens_per_second:.0f}",
            f"[bold]{entry.speed_up:.2f}x[/bold]",
            f"{stats.tokens_per_forward:.2f}",
            f"{100 * stats.acceptance_rate:.0f} %",
            f"[{colour}]{entry.verdict}[/{colour}]",
        )
    return table


def _write(result: Demo, folder: Path, report: bool) -> dict[str, Any]:
    """Write the three files; print the table and where they are."""
    from paceline.bench.machine import describe_machine
    from paceline.bench.report import write_json
    from paceline.demo.page import render
    from paceline.demo.picture import draw

    record = result.to_dict() | {"machine": describe_machine()}
    write_json(folder / "demo.json", record)
    (folder / "demo.html").write_text(render(result), encoding="utf-8")
    draw(result, folder / "demo.png")
    if report:
        console = out()
        console.print(demo_table(result))
        console.print(
            f"\n[bold]{result.speed_up:.2f}x[/bold] the speed of plain decoding, {result.tokens_per_forward:.2f} tokens per forward; "
            f"{result.identical} of {len(result.completions)} outputs identical to plain decoding, token for token."
        )
        console.print(f"\nWhich tokens were drafted: {folder / 'demo.html'}", soft_wrap=True)
        console.print(f"[dim]The same as a picture: {folder / 'demo.png'}; all numbers: {folder / 'demo.json'}[/dim]", soft_wrap=True)
    return record


def _check_folder(folder: Path) -> None:
    """Make the output folder now rather than fail after the work.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror}; choose another folder") from None


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[str], None]]:
    """A spinner with the current step, where somebody watches."""
    console = err()
    if silent or not console.is_terminal:
        yield lambda message: None
        return
    with console.status("starting") as status:
        yield lambda message: status.update(message)

"""`paceline audit`: check that a method keeps its declared guarantee on a model, and write the certificate."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import options
from paceline.cli.console import counted, out, print_json
from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from paceline.engine.prompts import Prompt


def audit(
    model: options.Model,
    method: options.Method = "auto",
    draft: options.Draft = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    exact: options.Exact = False,
    batching: options.Batching = "ragged",
    max_tokens: options.MaxTokens = 64,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of prompts (texts or lists of ids). Default: held-out Python text and random ids."),
    ] = None,
    sampling: Annotated[bool, typer.Option(help="Check sampling as well as greedy decoding.")] = True,
    controls: Annotated[bool, typer.Option(help="Break the loop on purpose and see that the checks notice.")] = True,
    seed: Annotated[int, typer.Option(help="Of random prompts and samples.")] = 0,
    certificate: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the certificate here as JSON.")] = None,
    json: options.Json = False,
) -> None:
    """Check a method's guarantee. Exits with 5 if it is violated, or if a deliberate fault goes unnoticed."""
    from paceline.bench.audit.render import render
    from paceline.bench.audit.run import run_audit
    from paceline.bench.report import write_json

    given = None if prompts is None else read_prompts(prompts)
    with counted(silent=json) as report:
        found = run_audit(
            model,
            method,
            draft,
            dtype=dtype,
            device=device,
            exact=exact,
            batching=batching,
            prompts=given,
            max_tokens=max_tokens,
            sampling_checks=sampling,
            controls=controls,
            seed=seed,
            on_progress=report,
        )
    if certificate is not None:
        write_json(certificate, found.to_dict())
    if json:
        print_json(found.to_dict())
    else:
        out().print(render(found))
    found.require()


def read_prompts(path: Path) -> Sequence[Prompt]:
    """Prompts from a JSON file.

    Raises:
        UsageError: if it cannot be read, or is not a list of texts and lists of ids.
    """
    try:
        found = json_format.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {path}: {error}; give a JSON list of texts or lists of ids") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) or _ids(entry) for entry in found):
        raise UsageError(f"--prompts {path}: must be a JSON list whose entries are texts or lists of ids")
    return found


def _ids(entry: object) -> bool:
    return isinstance(entry, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in entry)

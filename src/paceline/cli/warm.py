"""`paceline warm`: fill a forest file for Lookahead with texts, or with a model's own answers to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import options
from paceline.cli.console import busy, err, print_json
from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from paceline.drafting.lookahead import Lookahead
    from paceline.engine.llm import LLM

TOGETHER = 8  # prompts answered at once


def warm(
    model: options.Model,
    forest: Annotated[Path, typer.Argument(metavar="FOREST", help="The file; one that exists is added to.", show_default=False)],
    text: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Take this text in as it is; repeatable.")] = None,
    prompts: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Answer every line of this file, and learn the answers; repeatable.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="A prompt file is one prompt, not one per line.")] = False,
    settings: Annotated[
        str, typer.Option(metavar="key=value,...", help="Options of method lookahead that shape the forest (store, branch_length).")
    ] = "",
    scope: Annotated[str, typer.Option(metavar="NAME", help="Whose outputs these are; requests of other tenants do not see them.")] = "",
    max_tokens: options.MaxTokens = 128,
    ignore_eos: options.IgnoreEos = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Fill a forest for `--method lookahead:forest=FOREST` before the first request comes."""
    if not text and not prompts:
        raise UsageError("nothing to learn from; give --text FILE or --prompts FILE")
    texts = [_read(path) for path in text or ()]
    asked = [prompt for path in prompts or () for prompt in _prompts(_read(path), whole)]
    llm = options.open_model(model, f"lookahead:{settings}", None, dtype, device, sequences=TOGETHER)
    drafter = _drafter(llm)
    if forest.exists():
        drafter.load(forest)
    learned = sum(_learn(llm, drafter, body, scope) for body in texts)
    with busy(f"answering {len(asked)} prompts"):
        answers = llm.generate(asked, None, max_tokens, ignore_eos=ignore_eos, tenant=scope) if asked else []
    learned += sum(len(answer.token_ids) for answer in answers)
    drafter.save(forest)
    size, memory = forest.stat().st_size, drafter.memory_bytes()
    if json:
        counts = {"texts": len(texts), "answers": len(answers), "tokens": learned, "memory_bytes": memory, "file_bytes": size}
        print_json({"forest": str(forest), "scopes": sorted(drafter.stores), **counts})
        return
    held = f"{size / 1e6:.1f} MB, {memory / 1e6:.1f} MB in memory"
    err().print(f"learned {learned} tokens of {len(texts)} texts and {len(answers)} answers; {forest}: {held}", soft_wrap=True)


def _drafter(llm: LLM) -> Lookahead:
    from paceline.drafting.lookahead import Lookahead

    drafter = llm.engine.drafter
    if not isinstance(drafter, Lookahead):
        raise UsageError("--settings must only hold options of method lookahead")
    return drafter


def _learn(llm: LLM, drafter: Lookahead, text: str, scope: str) -> int:
    """Take a text in; returns its length in tokens."""
    if llm.tokenizer is None:
        raise UsageError("--text needs a tokenizer, and this checkpoint has none")
    ids = llm.tokenizer.encode(text)
    drafter.learn(ids, scope)
    return len(ids)


def _prompts(text: str, whole: bool) -> list[str]:
    return [text] if whole else [line for line in text.splitlines() if line.strip()]


def _read(path: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: {reason}; choose another file") from None

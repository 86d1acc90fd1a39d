"""Streamed text with accepted drafts in green."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from paceline.engine.output import Chunk
    from paceline.engine.prompts import Tokenizer

ACCEPTED = "green"


def split_drafted(chunk: Chunk, tokenizer: Tokenizer | None) -> tuple[str, str]:
    """The chunk's text as (drafted and accepted, chosen by the target itself).

    Settled text may lag behind the tokens (half a character, the beginning of a stop string); where it does not start with the text of
    the drafted tokens, the whole chunk counts as drafted if most of its tokens were.
    """
    if tokenizer is None:
        words = [f"{token} " for token in chunk.token_ids]
        return "".join(words[: chunk.drafted]), "".join(words[chunk.drafted :])
    drafted = tokenizer.decode(chunk.token_ids[: chunk.drafted]) if chunk.drafted else ""
    if chunk.text.startswith(drafted):
        return drafted, chunk.text[len(drafted) :]
    return (chunk.text, "") if 2 * chunk.drafted > len(chunk.token_ids) else ("", chunk.text)


def print_chunk(console: Console, chunk: Chunk, tokenizer: Tokenizer | None) -> None:
    """Write a chunk without a line break and show it at once."""
    drafted, own = split_drafted(chunk, tokenizer)
    if not console.is_terminal:
        console.file.write(drafted + own)  # as it is: no wrapping, no tabs turned into spaces
    else:
        console.out(drafted, end="", style=ACCEPTED, highlight=False)
        console.out(own, end="", highlight=False)
    console.file.flush()

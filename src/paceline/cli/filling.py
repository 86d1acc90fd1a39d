"""An answer of a diffusion model while its positions fill in: decided text, open positions as dots, what is new in green."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.text import Text

    from paceline.engine.output import Chunk, Output
    from paceline.engine.prompts import Tokenizer

OPEN = "·"
NEW, DECIDED, WAITING = "green", "", "dim"


class Filling:
    """The picture of one answer.

    Args:
        tokenizer: turns ids into text; ids are shown as numbers without one.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.board: dict[int, int] = {}
        self.new: frozenset[int] = frozenset()

    def add(self, chunk: Chunk) -> None:
        """Take in what a forward decided."""
        self.board.update(chunk.filled)
        self.new = frozenset(index for index, _ in chunk.filled)

    def stretches(self) -> list[tuple[str, str]]:
        """(text, style) of everything up to the last decided position; neighbours of one style are decoded together."""
        kinds = [self._style(index) for index in range(max(self.board, default=-1) + 1)]
        found: list[tuple[str, str]] = []
        start = 0
        for end in range(1, len(kinds) + 1):
            if end == len(kinds) or kinds[end] != kinds[start]:
                found.append((self._text(range(start, end), kinds[start]), kinds[start]))
                start = end
        return found

    def picture(self) -> Text:
        """For a live display."""
        from rich.text import Text

        return Text.assemble(*self.stretches())

    def _style(self, index: int) -> str:
        if index not in self.board:
            return WAITING
        return NEW if index in self.new else DECIDED

    def _text(self, indices: range, style: str) -> str:
        if style == WAITING:
            return OPEN * len(indices) if self.tokenizer is not None else f"{OPEN} " * len(indices)
        ids = [self.board[index] for index in indices]
        return self.tokenizer.decode(ids) if self.tokenizer is not None else "".join(f"{token} " for token in ids)


def watch(console: Console, chunks: Iterator[Chunk], tokenizer: Tokenizer | None) -> Output | None:
    """Show an answer while it fills in, then leave its text on the console.

    Returns:
        The output, which the last chunk carries.
    """
    from rich.live import Live

    filling, output = Filling(tokenizer), None
    with Live(console=console, transient=True, vertical_overflow="visible", auto_refresh=False) as live:
        for chunk in chunks:
            filling.add(chunk)
            live.update(filling.picture(), refresh=True)
            output = chunk.output or output
    if output is not None:
        shown = output.text if tokenizer is not None else " ".join(map(str, output.token_ids))
        console.out(shown, end="", highlight=False)
    return output

"""Which part of a streamed piece is green."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from paceline.cli.coloured import print_chunk, split_drafted
from paceline.engine.output import Chunk

WORDS = {1: "def", 2: " main", 3: "():", 4: "\n\t"}


class Words:
    """A tokenizer of four words."""

    def decode(self, ids: Sequence[int], /) -> str:
        return "".join(WORDS[token] for token in ids)


def split(text: str, ids: tuple[int, ...], drafted: int) -> tuple[str, str]:
    return split_drafted(Chunk(text, ids, drafted), Words())  # type: ignore[arg-type]


def test_drafted_tokens_come_first() -> None:
    assert split("def main():", (1, 2, 3), 2) == ("def main", "():")
    assert split("def", (1,), 0) == ("", "def")
    assert split("def main", (1, 2), 2) == ("def main", "")


def test_text_that_lags_behind_its_tokens_is_not_torn() -> None:
    assert split("def ma", (1, 2, 3), 2) == ("def ma", "")
    assert split(" ma", (1, 2, 3), 1) == ("", " ma")


def test_ids_where_there_is_no_tokenizer() -> None:
    assert split_drafted(Chunk("", (7, 8), 1), None) == ("7 ", "8 ")


def test_a_pipe_gets_the_text_as_it_is() -> None:
    stream = io.StringIO()
    print_chunk(Console(file=stream, width=5), Chunk("def main():\n\t", (1, 2, 3, 4), 3), Words())  # type: ignore[arg-type]
    assert stream.getvalue() == "def main():\n\t"


def test_a_terminal_gets_colour() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=80)
    print_chunk(console, Chunk("def main", (1, 2), 1), Words())  # type: ignore[arg-type]
    assert "\x1b[32mdef" in stream.getvalue()
    assert stream.getvalue().endswith(" main")

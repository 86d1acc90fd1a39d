"""Emission: where output ends, and which text is safe to show."""

from __future__ import annotations

from collections.abc import Sequence as Many

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.core.request import FinishReason, Request, Sequence
from paceline.core.verdict import Verdict
from paceline.engine.emission import TextStream, cut


class Bytes:
    """A tokenizer of single UTF-8 bytes: characters regularly span several tokens."""

    def decode(self, ids: Many[int], /) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def stream_of(text: str, stop: tuple[str, ...] = ()) -> tuple[str, list[str], bool]:
    stream, pieces = TextStream(Bytes(), stop), []
    for byte in text.encode():
        stopped = stream.push(byte)
        pieces.append(stream.settled(final=stopped))
        if stopped:
            break
    pieces.append(stream.settled(final=True))
    return "".join(pieces), pieces, stream.stopped


@given(st.text(max_size=30))
def test_pieces_add_up_to_the_text_and_never_show_half_a_character(text: str) -> None:
    whole, pieces, _ = stream_of(text)
    assert whole == text
    assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


@given(st.text(alphabet="abé", max_size=30), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_at_their_first_completion_and_are_never_shown(text: str, stops: list[str]) -> None:
    whole, pieces, stopped = stream_of(text, tuple(stops))
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not ends:
        assert whole == text
        return
    first = min(end for end, _ in ends)
    assert whole == text[: min(start for end, start in ends if end == first)]
    for count in range(len(pieces)):  # nothing shown early had to be taken back
        assert whole.startswith("".join(pieces[:count]))


def sequence(**options: object) -> Sequence:
    return Sequence(0, Request((5, 6, 7), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "tokens", "kept", "reason"),
    [
        ({"max_tokens": 10}, (1, 2, 3), (1, 2, 3), None),
        ({"max_tokens": 2}, (1, 2, 3), (1, 2), FinishReason.LENGTH),
        ({"max_tokens": 3}, (1, 2, 3), (1, 2, 3), FinishReason.LENGTH),
        ({"max_tokens": 10}, (1, 0, 3), (1, 0), FinishReason.STOP),
        ({"max_tokens": 10, "ignore_eos": True}, (1, 0, 3), (1, 0, 3), None),
        ({"max_tokens": 10, "ignore_eos": True, "stop_ids": frozenset({3})}, (1, 0, 3, 4), (1, 0, 3), FinishReason.STOP),
        ({"max_tokens": 10, "stop_ids": frozenset({3})}, (3, 0), (3,), FinishReason.STOP),
    ],
)
def test_output_ends_exactly(
    options: dict[str, object], tokens: tuple[int, ...], kept: tuple[int, ...], reason: FinishReason | None
) -> None:
    assert cut(sequence(**options), Verdict((), tokens), frozenset({0}), 100, None) == (kept, reason)


def test_a_full_context_ends_the_output() -> None:
    assert cut(sequence(max_tokens=50), Verdict((), (1, 2, 3)), frozenset(), 5, None) == ((1, 2), FinishReason.LENGTH)


def test_a_stop_string_ends_the_output_inside_a_verdict() -> None:
    stream = TextStream(Bytes(), ("lo",))
    kept, reason = cut(sequence(max_tokens=50), Verdict((), tuple(b"hello there")), frozenset(), 100, stream)
    assert (bytes(kept), reason) == (b"hello", FinishReason.STOP)
    assert stream.settled(final=True) == "hel"

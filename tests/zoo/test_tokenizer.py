"""The tokenizer is lossless, cuts where code is cut, and loads like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.core.errors import CheckpointError
from paceline.zoo.tokenizer import END_OF_TEXT, SPECIALS, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE = "    def double(self):\n        return self.value_7 * 12\n\n\nclass A(B):\n\tx  = __name__ # é\r\n"


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(found, list)
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return [str(tokenizer.decode([token])) for token in ids(tokenizer, text)]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_round_trip_is_lossless(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    if not any(special in text for special in SPECIALS):
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_source_round_trip(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(ids(tokenizer, SOURCE)) == SOURCE


def test_digits_are_single_and_indentation_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    found = pieces(tokenizer, SOURCE)
    assert "        " in found
    assert all(len(piece.strip()) == 1 for piece in found if piece.strip().isdigit())


def test_cutting_after_a_line_does_not_change_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """What a completion starts from is what training saw: the ids of a prefix are a prefix of the ids."""
    text = texts[3]
    whole = ids(tokenizer, text)
    for place, character in enumerate(text[:-1], start=1):
        if character in "\n:" and text[place] not in "\n:":
            assert whole[: len(ids(tokenizer, text[:place]))] == ids(tokenizer, text[:place])


def test_specials_have_the_first_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [tokenizer.convert_tokens_to_ids(special) for special in SPECIALS] == list(range(16))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert ids(tokenizer, f"a{END_OF_TEXT}b").count(0) == 1


def test_chat_template_marks_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    shown = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert shown == "<|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n<|assistant|>\n"


def test_training_is_deterministic(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    assert train_tokenizer(texts, len(tokenizer)).get_vocab() == tokenizer.get_vocab()


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)

"""Prompts, stops and limits as users write them: what is meant is understood, what cannot be meant is one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paceline.bench.audit.toy import toy_decoder
from paceline.core.errors import UsageError
from paceline.core.request import Request
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.prompts import Tokenizer, as_list, end_ids, prompt_ids, stop_strings
from paceline.scheduling.continuous import SchedulerConfig

VOCABULARY = 24
IDS = [3, 1, 4]
CHAT = [{"role": "user", "content": "ab"}]


class Letters:
    """Token i is the i-th letter; chats must begin with the user, as some templates demand."""

    chat_template = "{{ messages }}"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(ord("a") + token) for token in ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        from jinja2 import TemplateError

        if messages[0]["role"] != "user":
            raise TemplateError("Conversation roles must begin with user")
        return [9, *self.encode("".join(message["content"] for message in messages))]


TOKENIZER = Tokenizer(Letters())


@pytest.fixture(scope="module")
def llm() -> LLM:
    made = load(toy_decoder(VOCABULARY, seed=1, layers=1, max_positions=80), "none", device="cpu", kv_tokens=200, pack=False)
    made.engine.detokenizer = made.tokenizer = TOKENIZER
    return made


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("abc", (0, 1, 2)),
        (IDS, (3, 1, 4)),
        (tuple(IDS), (3, 1, 4)),
        (np.array(IDS), (3, 1, 4)),
        ([np.int64(token) for token in IDS], (3, 1, 4)),
        (torch.tensor(IDS), (3, 1, 4)),
        (CHAT, (9, 0, 1)),
    ],
    ids=["text", "list", "tuple", "array", "list of NumPy's", "tensor", "chat"],
)
def test_one_prompt_alone_and_in_a_list(prompt: Any, ids: tuple[int, ...]) -> None:
    assert [prompt_ids(entry, TOKENIZER, VOCABULARY) for entry in as_list(prompt)] == [ids]
    assert [prompt_ids(entry, TOKENIZER, VOCABULARY) for entry in as_list([prompt, prompt])] == [ids, ids]


def test_rows_of_an_array_are_prompts() -> None:
    for table in (np.array([IDS, IDS]), torch.tensor([IDS, IDS])):
        assert [prompt_ids(entry, None, VOCABULARY) for entry in as_list(table)] == [(3, 1, 4)] * 2


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (None, "not a NoneType"),
        ([None], "not a NoneType"),
        (5, "not a int"),
        (b"abc", "not a bytes"),
        ({"role": "user", "content": "x"}, "not a dict"),
        ([1.5, 2.5], "cannot hold 1.5"),
        ([[1, 2.5]], "cannot hold 2.5"),
        ([[True]], "cannot hold True"),
        ([["a"]], "cannot hold 'a'"),
        ([torch.tensor(3), torch.tensor(4)], "not a Tensor"),
        ([[]], "the prompt is empty"),
        ("", "the prompt is empty"),
        ([[24]], "outside the model's vocabulary of 24"),
        ([{"content": "x"}], "needs a 'role' and a 'content'"),
        ([{"role": "user"}], "needs a 'role' and a 'content'"),
        ([*CHAT, "y"], "needs a 'role' and a 'content'"),
        ([{"role": "system", "content": "x"}], "template refuses the messages: Conversation roles must begin with user"),
    ],
)
def test_what_is_no_prompt(prompts: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", "\\(")) as caught:
        [prompt_ids(prompt, TOKENIZER, VOCABULARY) for prompt in as_list(prompts)]
    assert "\n" not in str(caught.value)


def test_text_needs_a_tokenizer() -> None:
    for prompt in ("abc", CHAT):
        with pytest.raises(UsageError, match="no tokenizer; pass the prompt as a list of token ids"):
            prompt_ids(prompt, None, VOCABULARY)


def test_one_stop_string_may_stand_alone(llm: LLM) -> None:
    whole = llm.generate(IDS, max_tokens=12)[0].text
    stop = whole[4:6]
    assert llm.generate(IDS, max_tokens=12, stop=stop)[0].text == whole[: whole.index(stop)]
    assert stop_strings("END") == ("END",)
    assert stop_strings(["END", "."]) == ("END", ".")


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 3, [3], None])
def test_stops_that_are_none(stop: Any) -> None:
    with pytest.raises(UsageError, match="stop"):
        stop_strings(stop)


def test_stop_ids() -> None:
    assert end_ids([3, np.int64(4)], VOCABULARY) == {3, 4}
    for wrong, said in ((5, "must be a list"), ("5", "must be a list"), ([24], "outside"), ([-1], "outside"), (["5"], "cannot hold '5'")):
        with pytest.raises(UsageError, match=said):
            end_ids(wrong, VOCABULARY)  # type: ignore[arg-type]


def test_the_text_ends_before_a_stop_id_streamed_or_not(llm: LLM) -> None:
    plain = llm.generate(IDS, max_tokens=12)[0]
    stop = plain.token_ids[5]
    first = plain.token_ids.index(stop)
    output = llm.generate(IDS, max_tokens=12, stop_ids=[stop])[0]
    assert output.token_ids == plain.token_ids[: first + 1]
    assert output.text == plain.text[:first]
    chunks = list(llm.stream(IDS, max_tokens=12, stop_ids=[stop]))
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert chunks[-1].output is not None
    assert chunks[-1].output.text == output.text


def test_settings_must_be_settings(llm: LLM) -> None:
    with pytest.raises(UsageError, match=r"must be a paceline\.Sampling, not a dict"):
        llm.generate(IDS, {"temperature": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, -1, 2.5, None, "3"])
def test_max_tokens_is_a_positive_integer(limit: Any) -> None:
    with pytest.raises(UsageError, match="max_tokens="):
        Request((1,), max_tokens=limit)


@pytest.mark.parametrize("name", ["max_sequences", "max_rows"])
@pytest.mark.parametrize("limit", [0, -1])
def test_limits_that_let_nobody_run(name: str, limit: int) -> None:
    with pytest.raises(UsageError, match=f"{name}={limit} must be at least 1"):
        SchedulerConfig(**{name: limit})


def test_closing_forgets_prefixes(llm: LLM) -> None:
    long = IDS * 10
    llm.generate(long, max_tokens=4)
    assert llm.generate(long, max_tokens=4)[0].stats.cached_prompt_tokens
    llm.close()
    assert llm.runner.memory.free_slots == llm.runner.memory.total_slots
    assert not llm.generate(long, max_tokens=4)[0].stats.cached_prompt_tokens

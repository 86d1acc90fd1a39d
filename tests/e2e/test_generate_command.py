"""`paceline generate` from end to end, on a tiny model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

import paceline
from paceline.cli.app import app

PROMPT = "def name_7(value):\n"


def invoke(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def generate_json(*arguments: str) -> dict[str, Any]:
    found = invoke("generate", *arguments, "--json")
    assert found.exit_code == 0, found.stderr
    record: dict[str, Any] = json.loads(found.stdout)
    return record


def test_text_goes_to_stdout_and_numbers_to_stderr(tiny: str) -> None:
    expected = paceline.load(tiny, "none").generate(PROMPT, max_tokens=24)[0]
    found = invoke("generate", tiny, "-p", PROMPT, "-n", "24", "--method", "draft-model:length=3", "--draft", tiny)
    assert found.exit_code == 0, found.stderr
    assert found.stdout == expected.text + "\n"
    assert "24 tokens in 6 forwards (4.00 per forward)" in found.stderr
    assert "18 of 18 drafted accepted" in found.stderr
    assert "ended by length" in found.stderr


def test_json_is_the_output_and_nothing_else(tiny: str) -> None:
    expected = paceline.load(tiny, "none").generate(PROMPT, max_tokens=16)[0]
    record = generate_json(tiny, "-p", PROMPT, "-n", "16", "--method", "prompt-lookup")
    assert record["token_ids"] == expected.token_ids
    assert record["text"] == expected.text
    assert record["method"] == "prompt-lookup"
    assert record["stats"]["output_tokens"] == 16


def test_prompt_from_standard_input(tiny: str) -> None:
    piped = invoke("generate", tiny, "--prompt-file", "-", "-n", "8", stdin=PROMPT)
    given = invoke("generate", tiny, "-p", PROMPT, "-n", "8")
    assert piped.exit_code == 0
    assert piped.stdout == given.stdout


def test_ids_without_a_tokenizer(bare: str) -> None:
    expected = paceline.load(bare, "none").generate([5, 6, 7], max_tokens=8)[0]
    assert generate_json(bare, "--ids", "5 6 7", "-n", "8")["token_ids"] == expected.token_ids
    shown = invoke("generate", bare, "--ids", "5 6 7", "-n", "8")
    assert [int(word) for word in shown.stdout.split()] == expected.token_ids


def test_compare_runs_plain_too(tiny: str) -> None:
    compared = generate_json(tiny, "-p", PROMPT, "-n", "24", "--method", "draft-model", "--draft", tiny, "--compare")["compare"]
    assert compared["tokens_identical"] is True
    assert compared["first_difference"] is None
    assert compared["plain"]["forwards"] == 24
    assert compared["speed_up"] > 0
    found = invoke("generate", tiny, "-p", PROMPT, "-n", "24", "--method", "draft-model", "--draft", tiny, "--compare")
    assert "all tokens identical" in found.stderr


def test_compare_of_uncoupled_samples_does_not_promise_identity(tiny: str) -> None:
    arguments = (tiny, "-p", PROMPT, "-n", "24", "--temperature", "1.5", "--seed", "1", "--method", "draft-model", "--draft", tiny)
    compared = generate_json(*arguments, "--compare")["compare"]
    assert compared["identity_expected"] is False
    coupled = generate_json(*arguments, "--compare", "--coupled")["compare"]
    assert coupled["identity_expected"] is True
    assert coupled["tokens_identical"] is True


def test_samples_and_seeds(tiny: str) -> None:
    arguments = (tiny, "-p", PROMPT, "-n", "12", "--temperature", "1", "--samples", "2")
    first = generate_json(*arguments, "--seed", "5")
    assert len(first["samples"]) == 2
    assert first["samples"][0]["token_ids"] != first["samples"][1]["token_ids"]
    assert generate_json(*arguments, "--seed", "5")["samples"][1]["token_ids"] == first["samples"][1]["token_ids"]
    assert generate_json(*arguments, "--seed", "6")["token_ids"] != first["token_ids"]
    shown = invoke("generate", *arguments, "--seed", "5")
    assert "sample 2" in shown.stdout


def test_stop_bias_and_logprobs_reach_the_engine(tiny: str) -> None:
    plain = generate_json(tiny, "-p", PROMPT, "-n", "12", "--logprobs", "2")
    assert len(plain["logprobs"]) == 12
    assert len(plain["logprobs"][0]["top"]) == 2
    first = plain["token_ids"][0]
    assert generate_json(tiny, "-p", PROMPT, "-n", "12", "--logit-bias", f"{first}=-inf")["token_ids"][0] != first
    stopped = generate_json(tiny, "-p", PROMPT, "-n", "12", "--stop-id", str(plain["token_ids"][3]))
    assert stopped["finish_reason"] == "stop"
    assert len(stopped["token_ids"]) <= 4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("generate", "./no-such-folder", "-p", "x"), 3, "no-such-folder"),
        (("generate", "TINY", "-p", "x", "--method", "magic"), 2, "unknown method 'magic'"),
        (("generate", "TINY", "-p", "x", "--method", "prompt-lookup:depth=3"), 2, "'depth'"),
        (("generate", "TINY", "-p", "x", "--method", "draft-model"), 2, "draft"),
        (("generate", "TINY", "-p", "x", "--dtype", "int8"), 2, "int8"),
        (("generate", "TINY", "-p", "x", "--device", "tpu"), 2, "'tpu'"),
        (("generate", "TINY", "-p", "x", "--device", "cuda:99"), 2, "CUDA devices"),
        (("generate", "TINY", "-p", ""), 2, "prompt is empty"),
        (("generate", "BARE", "-p", "x"), 2, "no tokenizer"),
        (("generate", "TINY", "--ids", "5 100000"), 2, "100000"),
        (("chat", "BARE"), 2, "no tokenizer"),
        (("audit", "TINY", "--prompts", "no-such-file.json"), 2, "--prompts"),
        (("bench", "TINY", "--batch", "one"), 2, "--batch"),
        (("bench", "TINY", "--workloads", "nothing"), 2, "nothing"),
        (("bench", "TINY", "--resume"), 2, "--out"),
        (("demo", "--model", "BARE", "--out", "OUT"), 2, "no tokenizer"),
    ],
)
def test_errors_are_one_line_with_their_code(
    arguments: tuple[str, ...], code: int, said: str, tiny: str, bare: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    places = {"TINY": tiny, "BARE": bare, "OUT": str(tmp_path_factory.mktemp("out"))}
    found = invoke(*(places.get(argument, argument) for argument in arguments))
    assert found.exit_code == code, found.stderr
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert said in found.stderr

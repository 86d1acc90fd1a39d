"""`paceline chat` over a pipe: turns, reset, end of input, and reuse of what was read before."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

import paceline
from paceline.cli.app import app


def chat(model: str, lines: list[str], *arguments: str) -> tuple[str, str]:
    found = CliRunner().invoke(app, ["chat", model, "--max-tokens", "8", "--method", "none", *arguments], input="\n".join(lines) + "\n")
    assert found.exit_code == 0, found.stderr
    return found.stdout, found.stderr


def answers(model: str, questions: list[str]) -> list[str]:
    """What the library says to the same conversation."""
    llm = paceline.load(model, "none")
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": llm.generate([messages], max_tokens=8)[0].text})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_a_conversation_is_that_of_the_library_and_reuses_memory(tiny: str) -> None:
    said, told = chat(tiny, ["first question", "second question"])
    assert said == "".join(answer + "\n" for answer in answers(tiny, ["first question", "second question"]))
    lines = [line for line in told.splitlines() if "per forward" in line]
    assert len(lines) == 2
    assert "cached" not in lines[0]
    cached = re.search(r"(\d+) prompt tokens cached", lines[1])
    assert cached is not None
    assert int(cached[1]) > 8


def test_reset_forgets_and_quit_ends(tiny: str) -> None:
    said, told = chat(tiny, ["first question", "/reset", "second question", "/quit", "third question"])
    assert said == "".join(answers(tiny, [question])[0] + "\n" for question in ("first question", "second question"))
    assert "forgotten" in told


def test_empty_lines_are_ignored(tiny: str) -> None:
    assert chat(tiny, ["", "  "])[0] == ""


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(tiny: str) -> None:
    said, told = chat(tiny, ["word " * 3000, "second question"])
    assert "error: " in told
    assert "/reset" in told
    assert said == answers(tiny, ["second question"])[0] + "\n"


def test_a_tokenizer_without_chat_template(tiny: str, tmp_path: Path) -> None:
    for file in Path(tiny).iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content.pop("chat_template", None)
    settings.write_text(json.dumps(content), encoding="utf-8")
    found = CliRunner().invoke(app, ["chat", str(tmp_path)], input="hello\n")
    assert found.exit_code == 2
    assert "no chat template" in found.stderr
    assert found.stderr.count("\n") == 1

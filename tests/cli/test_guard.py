"""Errors become exit codes and one line."""

from __future__ import annotations

import pytest

from paceline.cli.guard import guarded
from paceline.core.errors import AuditFailure, CapacityError, CheckpointError, PacelineError, UsageError


def failing(error: BaseException) -> int:
    def call() -> None:
        raise error

    return guarded(call)


@pytest.mark.parametrize(
    ("error", "code"),
    [(PacelineError("m"), 1), (UsageError("m"), 2), (CheckpointError("m"), 3), (CapacityError("m"), 4), (AuditFailure("m"), 5)],
)
def test_every_error_class_has_its_exit_code(error: PacelineError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(error) == code
    assert capsys.readouterr() == ("", "error: m\n")


def test_success_is_0_and_a_given_code_is_kept() -> None:
    assert guarded(lambda: None) == 0
    assert guarded(lambda: 7) == 7


def test_interruption_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_anything_else_is_1_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(ZeroDivisionError("division by zero")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError: division by zero")
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_messages_are_one_line_and_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    failing(UsageError("first\n   second [bold]third[/bold] " + "long " * 60))
    said = capsys.readouterr().err
    assert said.startswith("error: first second [bold]third[/bold] long")
    assert said.count("\n") == 1


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_DEBUG", "1")
    with pytest.raises(UsageError, match="m"):
        failing(UsageError("m"))

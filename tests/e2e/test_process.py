"""The command line as a process: exit codes that shells see, interruption, closed pipes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

COMMAND = [sys.executable, "-c", "from paceline.cli import main; main()"]


def test_exit_code_and_one_line_on_stderr() -> None:
    found = subprocess.run([*COMMAND, "generate", "./nowhere", "-p", "x"], capture_output=True, text=True, timeout=180, check=False)
    assert found.returncode == 3
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr


def test_interruption_exits_with_130_without_traceback() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "./nowhere", "--prompt-file", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # shells let background jobs ignore it
    )
    time.sleep(3)  # it now waits for its prompt
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (said, told) == ("", "")


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    found = subprocess.run(
        f"{' '.join(map(repr, COMMAND))} methods --json | head -n 1", shell=True, capture_output=True, text=True, timeout=180, check=False
    )
    assert found.stdout == "[\n"
    assert "Traceback" not in found.stderr

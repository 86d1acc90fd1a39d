"""The command line. Importing this package loads nothing heavy: every command brings its rooms in when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of `paceline`; exits with the status of the command."""
    from paceline.cli.app import app

    app()

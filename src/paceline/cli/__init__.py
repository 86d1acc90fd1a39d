"""The command line. Importing this package loads nothing heavy: every command brings its rooms in when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of `paceline`; exits with the status of the command."""
    import os

    from paceline.cli.app import app

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported; its hints are not for our users
    app()

"""Errors a user can act on: one line each, naming the option, file or key and the remedy."""

from __future__ import annotations


class PacelineError(Exception):
    """Base of everything paceline raises on purpose; the CLI prints its message alone and exits with `exit_code`."""

    exit_code = 1


class UsageError(PacelineError, ValueError):
    """An option, argument or method string that cannot mean anything."""

    exit_code = 2


class CheckpointError(PacelineError):
    """A model folder, file or tensor that is missing, truncated, mismatched or of an unsupported architecture."""

    exit_code = 3


class CapacityError(PacelineError):
    """A request that can never fit the configured memory, however long it waits."""

    exit_code = 4


class AuditFailure(PacelineError):
    """The audit found a violation of the declared guarantee."""

    exit_code = 5

"""Exceptions with a meaning for the user, and how a command reports one (`report_error`)."""

import sys


class UserError(Exception):
    """The user must change something: one clear line, exit code 2, nothing written."""


class ConfigError(UserError):
    """An unknown key, a value of the wrong type or out of range."""


class MissingPackage(UserError):
    """An optional package is not installed; the message says how to install it."""


class RunFailure(Exception):
    """A run that cannot go on: exit code 1, results flushed, Sacred status FAILED."""


class EnvFailure(RunFailure):
    """An environment broke too often in a row; the message carries the worker's own traceback."""


class Diverged(RunFailure):
    """A loss, gradient or target is NaN or infinite; the message names the cause."""


def report_error(exc: UserError | RunFailure) -> int:
    """Writes the one line of an error to stderr and returns the exit code of the command."""
    sys.stderr.write(f"error: {exc}\n")
    return 2 if isinstance(exc, UserError) else 1

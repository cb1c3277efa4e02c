"""Exceptions with a meaning for the user, and how a command reports one (`report_error`)."""

import re
import sys
import traceback
from pathlib import Path

WHERE_TO_REPORT = "as an issue where you got it from"
# The modules of requirements.txt, without which nothing runs.
REQUIRED = frozenset(
    [
        "torch",
        "numpy",
        "numba",
        "sacred",
        "pkg_resources",
        "yaml",
        "google",
        "jinja2",
        "rich",
        "scipy",
        "matplotlib",
        "PIL",
    ]
)
_SRC = str(Path(__file__).resolve().parents[1])
_LIBRARY = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python[\d.]+)[/\\]|^<")


class UserError(Exception):
    """The user must change something: one clear line, exit code 2, nothing written."""


class ConfigError(UserError):
    """An unknown key, a value of the wrong type or out of range."""


class MissingPackage(UserError):
    """An optional package is not installed; the message says how to install it."""


class Finished(Exception):
    """There is nothing left to do for `resume=auto`: the run in `run_dir` is at its end."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(f"finished already: {run_dir}")
        self.run_dir = run_dir


class RunFailure(Exception):
    """A run that cannot go on: exit code 1, results flushed, Sacred status FAILED."""


class EnvFailure(RunFailure):
    """An environment broke too often in a row.

    Args:
        message: one line.
        detail: what belongs to it, the traceback of a worker: for cout.txt and `-l DEBUG`.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(f"{message}\n{detail}" if detail else message)
        self.line, self.detail = message, detail


class EnvError(EnvFailure, ValueError):
    """An environment raised, or does not keep to its interface: another attempt would end alike."""


class EnvQueryFailed(EnvFailure, RuntimeError):
    """An environment did not answer a question between two episodes."""


class Diverged(RunFailure):
    """A loss, gradient or target is NaN or infinite; the message names the cause."""


def report_error(exc: UserError | RunFailure) -> int:
    """Writes the one line of an error to stderr and returns the exit code of the command."""
    sys.stderr.write(f"error: {exc.line if isinstance(exc, EnvFailure) else exc}\n")
    return 2 if isinstance(exc, UserError) else 1


def missing_requirement(exc: ModuleNotFoundError) -> MissingPackage | None:
    """What to do about a module of requirements.txt that is not installed; None: it is another."""
    if exc.name is None or exc.name.partition(".")[0] not in REQUIRED:
        return None
    return MissingPackage(
        f"{sys.executable} has no module '{exc.name}'. If `make setup` has installed everything, "
        "`source .venv/bin/activate` is missing; otherwise `pip install -r requirements.txt` helps"
    )


def raised(exc: BaseException) -> str:
    """An exception in one line: its type, what it says, and where it was raised."""
    said = " ".join(str(exc).split())
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(exc).__name__}{': ' if said else ''}{said}{where}"


def first_line(exc: BaseException) -> str:
    """The first line of what an exception says; its type where it says nothing."""
    return next(iter(str(exc).splitlines()), "") or type(exc).__name__


def fault(exc: BaseException) -> str:
    """One line about an exception that nobody has foreseen: whose code it is, and what to do."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
    said = f"{raised(exc)}; -l DEBUG and the run's cout.txt show the way there. "
    if own and not own[-1].filename.startswith(_SRC):
        return f"{said}{own[-1].filename}, line {own[-1].lineno} is not part of this project"
    return f"{said}This is a fault of the program: please report it, with both, {WHERE_TO_REPORT}"

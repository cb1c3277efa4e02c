"""Packages of others that an environment needs and that may be missing."""

from __future__ import annotations

import importlib
import importlib.util
import io
from contextlib import redirect_stderr
from types import ModuleType

from utils.errors import MissingPackage


def load_package(env: str, module: str, install: str) -> ModuleType:
    """A module of a package, imported without what it writes to stderr (gym says there that it is
    no longer maintained).

    Args:
        env: the environment that needs it, for messages.
        module: its name, e.g. "vmas".
        install: the command that installs the package.

    Raises:
        MissingPackage: the package is not installed or cannot be imported.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(f"{env} needs the package {package}: {install}")
    try:
        with redirect_stderr(io.StringIO()):
            return importlib.import_module(module)
    except Exception as error:  # what it is built on may fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise MissingPackage(f"{module} cannot be imported ({reason}): {install}") from error

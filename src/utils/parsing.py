"""Command lines of the commands of `main.py`."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reads `python src/main.py COMMAND ...`; a mistake is a `UserError` in one line.

    Args:
        command: the first word, and what follows it if it is a part of its own (`sweep status`).
        description, ...: argparse's own.
    """

    def __init__(self, command: str, **kwargs: Any) -> None:
        super().__init__(prog=f"python src/main.py {command}", **kwargs)
        self._command = command.split()[0]

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self._command}: {message}; `python src/main.py {self._command} --help` lists the "
            "options"
        )

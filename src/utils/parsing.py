"""Command lines of the commands of `main.py`."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reads `python src/main.py COMMAND ...`; a mistake is a `UserError` in one line.

    Args:
        command: its name.
        description, ...: argparse's own.
    """

    def __init__(self, command: str, **kwargs: Any) -> None:
        super().__init__(prog=f"python src/main.py {command}", **kwargs)
        self._command = command

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self._command}: {message}; `{self.prog} --help` lists the options")

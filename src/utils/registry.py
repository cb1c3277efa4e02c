"""Registries of plug-ins: name -> class or factory."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from utils.errors import UserError

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str:
    """The hint that ends an error about an unknown name: the nearest known one, or all of them if
    there are few.

    Returns:
        `"did you mean 'x'?"`, `"known: a, b, c"` or an empty string.
    """
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if 0 < len(names) <= 30 else ""


class Registry(dict[str, Any]):
    """A dict from name to class whose missing names say what would have been right.

    Args:
        kind: what is registered, in words ("learner"), for error messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: `@register("my_learner")`.

        Raises:
            ValueError: another object already has this name.
        """

        def add(obj: T) -> T:
            if self.get(name, obj) is not obj:
                raise ValueError(f"{self.kind} '{name}' is already registered as {self[name]!r}")
            self[name] = obj
            return obj

        return add

    def __missing__(self, name: str) -> Any:
        raise UserError(f"unknown {self.kind} '{name}'; {nearest(name, self)}")

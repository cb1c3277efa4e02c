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
    ends = [one for one in names if one.lower().endswith(f"_{str(name).lower()}")]
    if len(str(name)) == 1 and len(ends) == 1:  # K -> s2q_k
        return f"did you mean '{ends[0]}'?"
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
        self._plugged: dict[str, Any] = {}

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

    def note_plugged(self, entry: Any) -> None:
        """A plug-in has brought this entry."""
        self._plugged |= {name: one for name, one in self.items() if one is entry}

    def plugged(self) -> list[str]:
        """The names that plug-ins have brought."""
        return sorted(name for name, entry in self._plugged.items() if self.get(name) is entry)

    def __missing__(self, name: str) -> Any:
        plugged = ", ".join(f"'{one}'" for one in self.plugged())
        hints = [nearest(name, self), f"plug-ins have brought {plugged}" if plugged else ""]
        raise UserError(f"unknown {self.kind} '{name}'; {'; '.join(filter(None, hints))}")

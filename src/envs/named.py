"""Tasks that a name describes and arguments change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

T = TypeVar("T")


def override(task: T, **given: Any) -> T:
    """The task (a dataclass) with every given field that is not None."""
    changes = {key: value for key, value in given.items() if value is not None}
    return replace(task, **changes)  # type: ignore[type-var]

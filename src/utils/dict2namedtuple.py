"""PyMARL's import path of a dict as a named tuple."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any


def convert(dictionary: Mapping[str, Any]) -> Any:
    """A named tuple with the dict's entries as fields."""
    return namedtuple("GenericDict", dictionary)(**dictionary)

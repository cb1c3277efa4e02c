"""Progress of long reports: a bar on a terminal, a line in the log where there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_log = logging.getLogger(__name__)
_LONG = 100  # fewer items need no line in the log

T = TypeVar("T")


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one after the other, while it is shown how many of them are done.

    Args:
        what: in words, for the line: `reading runs`.
    """
    console = Console(stderr=True)
    if not console.is_terminal and len(items) >= _LONG:
        _log.info("%s: %d", what, len(items))
    if not console.is_terminal or len(items) < 2:
        yield from items
        return
    yield from track(items, f"[dim]{what}", console=console, transient=True)

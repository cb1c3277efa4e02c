"""Signal handlers for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handling_signals(
    signums: Sequence[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Runs a block in which `handler` has these signals; before and after whoever had them.

    In a thread other than the main one nothing changes: only that one may set handlers.
    """
    try:
        previous = {signum: signal.signal(signum, handler) for signum in signums}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)

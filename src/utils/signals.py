"""Signals that ask a run to end, and handlers for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# Besides Ctrl-C: `kill` and schedulers, a terminal that is closed, what schedulers send ahead.
ENDING: tuple[int, ...] = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
_MAY_BE_IGNORED = set(ENDING) - {signal.SIGINT, signal.SIGTERM}  # nohup ignores SIGHUP


class Aborted(KeyboardInterrupt):
    """The second Ctrl-C; `signum` is the signal that came first."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class EndRequest:
    """The first signal counts, a second Ctrl-C aborts, all others are repetitions.

    Attributes:
        received: the first signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.interrupts = 0

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        """The signals' handler.

        Raises:
            Aborted: Ctrl-C, for the second time.
        """
        first, self.received = self.received is None, self.received or signum
        self.interrupts += signum == signal.SIGINT
        if self.interrupts > 1:
            raise Aborted(self.received)
        if first:
            self.on_first(signum)

    def on_first(self, signum: int) -> None:
        """What the first signal does."""


@contextmanager
def handling_signals(
    signums: Sequence[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Runs a block in which `handler` has these signals; before and after whoever had them.

    SIGHUP and SIGUSR1 stay ignored where they are. In a thread other than the main one nothing
    changes: only that one may set handlers.
    """
    wanted = [
        signum
        for signum in signums
        if signum not in _MAY_BE_IGNORED or signal.getsignal(signum) is not signal.SIG_IGN
    ]
    try:
        previous = {signum: signal.signal(signum, handler) for signum in wanted}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)

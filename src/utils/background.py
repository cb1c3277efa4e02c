"""Work that must never delay training: a thread that calls one function after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """A thread of its own for calls that may be slow or never return.

    The thread is a daemon: what still waits for it at the end of the process is lost.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None] | None, threading.Event]] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """From now on the calls are carried out."""
        self._thread.start()

    def call(self, function: Callable[[], None]) -> threading.Event:
        """Calls `function`, which must not raise, after all before it; returns at once.

        Returns:
            What is set as soon as the function has returned.
        """
        done = threading.Event()
        self._calls.put((function, done))
        return done

    def end(self) -> None:
        """Ends the thread after the calls so far, without waiting for it."""
        self._calls.put((None, threading.Event()))

    def _work(self) -> None:
        while True:
            function, done = self._calls.get()
            if function is None:
                return
            function()
            done.set()

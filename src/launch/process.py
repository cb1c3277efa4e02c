"""Runs as processes: how one is started and ended, and many of them side by side."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO, Protocol, TypeVar

from utils.signals import handling_signals

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
# Exit codes of runs that were told to end and wrote a checkpoint.
ENDED_BY_SIGNAL = {
    128 + signum for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
}


class Stopped(Exception):
    """A signal ended the launcher and, in good order, its runs."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum


class Process(Protocol):
    """What `side_by_side` asks of a process."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def abort(self) -> None: ...
    def wait(self) -> int: ...


class Child:
    """A command as a process whose output goes to a file.

    It is in a session of its own, so that Ctrl-C in the terminal reaches the launcher alone, which
    then tells it once; and it is told to end when the launcher dies.
    """

    def __init__(
        self,
        command: Sequence[str],
        output: IO[bytes],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=_prepare,
        )
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        """The exit code, 128 + N after signal N; None: it is still at work."""
        code = self._popen.poll()
        return 128 - code if code is not None and code < 0 else code

    def stop(self) -> None:
        """Asks it to write a checkpoint and end; to ask again changes nothing."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def abort(self) -> None:
        """Ends it without a checkpoint: Ctrl-C twice."""
        for _ in range(2):
            if self._popen.poll() is None:
                self._popen.send_signal(signal.SIGINT)
                time.sleep(0.1)  # equal signals that come together are one

    def wait(self) -> int:
        """The exit code once it has ended."""
        self._popen.wait()
        code = self.poll()
        assert code is not None  # it has ended
        return code


def _prepare() -> None:
    """In the new process, before the command begins."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Slurm sends its signals to all processes of a job. These two are for the launcher.
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


T = TypeVar("T")
P = TypeVar("P", bound=Process)


def side_by_side(
    todo: deque[T],
    start: Callable[[T], P | None],
    ended: Callable[[T, P, int], None],
    tick: Callable[[Sequence[P], bool], None] = lambda running, stopping: None,
    more: Callable[[], bool] = lambda: False,
) -> None:
    """Works through a queue with several processes at a time.

    SIGINT and SIGTERM end all of them with checkpoints; once more aborts them. So does an exception
    of `ended`.

    Args:
        todo: is emptied.
        start: a process for the next item, or None where there is no room for it now.
        ended: is told of each process that ended, with its exit code.
        tick: is called several times a second with the running processes, and whether they have
            been told to end.
        more: is called whenever the queue is empty; it may fill it. False: nothing will come.

    Raises:
        Stopped: after a signal, once all processes have ended.
    """
    running: list[tuple[T, P]] = []
    signals: list[int] = []
    told = 0

    def note(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    with handling_signals((signal.SIGINT, signal.SIGTERM), note):
        try:
            while (not signals and (todo or more())) or running:
                while todo and not signals and (process := start(todo[0])) is not None:
                    running.append((todo.popleft(), process))
                time.sleep(0.1)
                if len(signals) > told:
                    again, told = bool(told), len(signals)
                    for _, process in running:
                        process.abort() if again else process.stop()
                for item, process in list(running):
                    if (code := process.poll()) is not None:
                        running.remove((item, process))
                        ended(item, process, code)
                tick([process for _, process in running], bool(signals))
        finally:
            for _, process in running:
                process.stop()
            for _, process in running:
                process.wait()
    if signals:
        raise Stopped(signals[0])


def thread_environment(cores: int) -> dict[str, str]:
    """This process's environment for a run that uses so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(cores)}

"""A run folder belongs to one process at a time.

`hold` takes the folder for this process. The lock is the kernel's (flock on a file in the folder),
so it ends with the process, however that ends; the file stays, its content says who had it last.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import weakref
from pathlib import Path
from typing import IO

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

_log = logging.getLogger(__name__)
_held: weakref.WeakValueDictionary[str, RunLock] = weakref.WeakValueDictionary()
_guard = threading.Lock()


class Held(UserError):
    """Another process works in the folder; the message says which."""


class RunLock:
    """A folder that this process holds, until `release` or until nobody refers to the lock."""

    def __init__(self, folder: Path, file: IO[str]) -> None:
        self.folder = folder
        self._file = file

    def release(self) -> None:
        """Others may have the folder; calling it again changes nothing."""
        self._file.close()

    @property
    def released(self) -> bool:
        return self._file.closed


def hold(folder: Path) -> RunLock:
    """Takes a run folder for this process; what holds it already in this process shares the lock.

    Where the file system knows no locks, a warning says that two processes are not kept apart.

    Raises:
        Held: another process has it.
        OSError: the folder cannot be written to.
    """
    name = os.path.realpath(folder)
    with _guard:
        mine = _held.get(name)
        if mine is not None and not mine.released:
            return mine
        lock = RunLock(folder, _locked(Path(name) / LOCK_FILE))
        _held[name] = lock
        return lock


def _locked(path: Path) -> IO[str]:
    file = path.open("a+", encoding="utf-8")
    try:
        _lock(file, path)
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: IO[str], path: Path) -> None:
    reason = "this system has no flock"
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as exc:
            if exc.errno in _BUSY:
                raise Held(
                    f"the run in {path.parent} is going on in {_holder(path)}: wait for its end, "
                    "or end it first"
                ) from None
            reason = str(exc.strerror)
    _log.warning(
        "%s cannot be locked (%s): see to it that no second process continues this run",
        path.parent,
        reason,
    )


def _holder(path: Path) -> str:
    """Who has written the lock file, in words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(content['pid'])} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is only about to write it
        return "another process"

"""The process behind one environment of a `SubprocVectorEnv`.

It owns one `EnvHost`, whose rows lie in memory shared with the parent, and answers commands of one
byte (plus a pickled rest for the rare ones). It leads a process group of its own, so that whatever
an environment starts (a game, say) ends with it; it dies when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import signal
import threading
import time
import traceback
from multiprocessing import reduction, spawn
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs.adapter import EnvHost, EnvRaised, Layout, host_layout
from utils.errors import EnvError, EnvFailure, UserError, raised

# commands, from the parent: RESET may be followed by t_env in decimals, ASK by a pickled method
# name and arguments
STEP, RESET, ASK, CLOSE = b"s", b"r", b"a", b"c"
# replies: built (spec follows), done (new info names may follow), the value asked for, refused (an
# exception for the caller follows), broken (what happened and a traceback follow, the worker ends)
BUILT, DONE, VALUE, REFUSED, BROKEN = b"B", b"D", b"V", b"R", b"X"

ORPHAN_GRACE = 3.0  # s that an environment has to close when the parent is gone
_PR_SET_PDEATHSIG = 1
_ALIGN = 64  # bytes, so that no two arrays share a cache line


def memory_size(layout: Layout) -> int:
    """Bytes of shared memory that `map_arrays` needs for this layout."""
    return sum(_padded(shape, dtype) for shape, dtype in layout.values())


def map_arrays(memory: mmap.mmap | bytes, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of `layout`, one after the other in `memory`."""
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for name, (shape, dtype) in layout.items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
        offset += _padded(shape, dtype)
    return arrays


def _padded(shape: tuple[int, ...], dtype: type) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // _ALIGN) * _ALIGN


class _ParentGone(Exception):
    """The connection to the parent is closed. (The environment may have connections of its own that
    break.)
    """


class _Line:
    """The connection to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def receive(self) -> bytes:
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _ParentGone from error

    def receive_fd(self) -> int:
        try:
            return reduction.recv_handle(self._connection)
        except (EOFError, OSError, RuntimeError) as error:
            raise _ParentGone from error

    def send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise _ParentGone from error


def main(connection_fd: int, alive_fd: int) -> None:
    """Runs the worker until it is told to close, breaks, or loses its parent.

    Args:
        connection_fd: socket to the parent.
        alive_fd: pipe whose other end only the parent holds; its end of file means that the parent
            is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_die_with_parent, args=(alive_fd,), daemon=True).start()
    _wake_when_parent_dies()
    try:
        _serve(_Line(Connection(connection_fd)))
    except _ParentGone:
        os.killpg(0, signal.SIGKILL)  # nobody else would end what the environment has started


def _wake_when_parent_dies() -> None:
    """Without this, a worker that is stopped (SIGSTOP) when its parent dies stays for ever."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _die_with_parent(alive_fd: int) -> None:
    # In a thread of its own, because the main thread may hang in the environment.
    os.read(alive_fd, 1)
    time.sleep(ORPHAN_GRACE)
    os.killpg(0, signal.SIGKILL)


def _serve(line: _Line) -> None:
    start: dict[str, Any] = pickle.loads(line.receive())
    host = None
    try:
        spawn.prepare(start["preparation"])
        setup = pickle.loads(start["setup"])
        if setup is not None:
            setup()
        host = EnvHost(pickle.loads(start["factory"]), start["env_args"], start["seed"])
        line.send(BUILT + pickle.dumps(host.spec))
        memory_fd = line.receive_fd()
        spec, n_envs, index = pickle.loads(line.receive())
        layout = host_layout(spec, n_envs)
        memory = mmap.mmap(memory_fd, memory_size(layout))
        os.close(memory_fd)
        host.attach(map_arrays(memory, layout), spec, index)
        while True:
            message = line.receive()
            command = message[:1]
            if command == STEP:
                names = host.step()
                line.send(DONE + pickle.dumps(names) if names else DONE)
            elif command == RESET:
                host.reset(int(message[1:]) if len(message) > 1 else None)
                line.send(DONE)
            elif command == ASK:
                line.send(_answer(host, *pickle.loads(message[1:])))
            elif command == CLOSE:
                return
    except _ParentGone:
        raise
    except EnvRaised as error:
        line.send(BROKEN + pickle.dumps((error.line, traceback.format_exc())))
    except (UserError, EnvError) as error:  # the next environment would not fare better
        line.send(refusal(error))
    except (Exception, SystemExit) as error:
        line.send(BROKEN + pickle.dumps((raised(error), traceback.format_exc())))
    finally:
        if host is not None:
            host.close()


def _answer(host: EnvHost, method: str, arguments: tuple[Any, ...]) -> bytes:
    try:
        return VALUE + pickle.dumps(getattr(host, method)(*arguments))
    except Exception as error:
        return refusal(error)


def refusal(error: BaseException) -> bytes:
    """An exception for the caller (`subproc.payload`): name of its type, message, what belongs to
    it.
    """
    text, detail = str(error), ""
    if isinstance(error, EnvFailure):
        text, detail = error.line, error.detail
    return REFUSED + pickle.dumps((type(error).__name__, text, detail or traceback.format_exc()))

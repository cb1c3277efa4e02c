"""One worker process per `MultiAgentEnv`: results in shared memory, commands of one byte, broken
workers replaced.

Workers are started as fresh interpreters rather than through `multiprocessing`'s start methods: a
fork would hand every worker the pipe ends of the others (and torch's threads); forkserver and spawn
(Python 3.11) execute the main script and all that it imports again in every worker. The shared
memory is anonymous: it has no name that could be left behind.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe, reduction, spawn
from pathlib import Path
from typing import Any

import numpy as np

from envs import worker
from envs.adapter import Accounts, AdapterVectorEnv, Layout
from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec
from utils import errors
from utils.errors import ConfigError, EnvError, EnvFailure, EnvQueryFailed, UserError

CLOSE_GRACE = 5.0  # s that environments have to close
TERM_GRACE = 1.0  # s between SIGTERM and SIGKILL

_SRC = str(Path(__file__).resolve().parent.parent)
_COMMAND = (
    "import sys; sys.path.insert(0, sys.argv[1]); from envs.worker import main; "
    "main(*map(int, sys.argv[2:]))"
)

_log = logging.getLogger(__name__)


class Broken(Exception):
    """A worker, or an actor with workers, is of no more use; the message says why in one line,
    `detail` at length.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class Deadline:
    """A moment `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = float(seconds)
        self._at = time.monotonic() + self.seconds

    def remaining(self) -> float:
        """Seconds until then; 0 afterwards."""
        return max(0.0, self._at - time.monotonic())


class _Worker:
    """The parent's side of one worker process.

    Args:
        start: what the worker needs to build its environment (see `worker._serve`).
        alive_fd: read end of the pipe whose write end this process holds for life.
    """

    def __init__(self, start: dict[str, Any], alive_fd: int) -> None:
        self._connection, theirs = Pipe()
        try:
            fds = (theirs.fileno(), alive_fd)
            self.process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, _SRC, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                # a process group to be killed as a whole; no Ctrl-C from the terminal
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ},  # workers share the cores
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        self.spec: EnvSpec | None = None
        self.send(pickle.dumps(start))

    def attach(self, memory_fd: int, spec: EnvSpec, n_envs: int, index: int) -> None:
        """Hands over the shared memory; the worker may still be busy building its environment."""
        with contextlib.suppress(OSError):  # a dead worker shows when it does not answer
            reduction.send_handle(self._connection, memory_fd, self.process.pid)
        self.send(pickle.dumps((spec, n_envs, index)))

    def send(self, message: bytes) -> None:
        """Sends a command. That a worker is dead shows when its answer is read."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(message)

    def receive(self, deadline: Deadline) -> bytes:
        """The next message.

        Raises:
            Broken: the worker died, raised, or was silent until `deadline`.
        """
        if not self._poll.poll(deadline.remaining() * 1000):
            raise Broken(f"no answer in {deadline.seconds} s")
        try:
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise Broken(self._how_it_died()) from None
        if message[:1] == worker.BROKEN:
            raise Broken(*pickle.loads(message[1:]))
        return message

    def wait_until_built(self, deadline: Deadline) -> EnvSpec:
        """The sizes of the worker's environment, once it exists.

        Raises:
            Broken: as `receive`.
            UserError: the environment refused its arguments.
        """
        if self.spec is None:
            self.spec = pickle.loads(payload(self.receive(deadline)))
        return self.spec

    def answer(self, deadline: Deadline) -> bytes:
        """The reply to the last command, without its tag.

        Raises:
            Broken: as `receive`.
            Exception: what the environment refused to do.
        """
        self.wait_until_built(deadline)
        return payload(self.receive(deadline))

    def _how_it_died(self) -> str:
        try:
            code = self.process.wait(TERM_GRACE)
        except subprocess.TimeoutExpired:
            return "worker closed its connection"
        return f"worker killed by signal {-code}" if code < 0 else f"worker exited with code {code}"

    def signal_group(self, signum: int) -> None:
        """Sends a signal to the worker and to all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signum)

    def release(self) -> None:
        """Closes the parent's end of the connection."""
        self._connection.close()


def payload(message: bytes) -> bytes:
    """A reply without its tag.

    Raises:
        Exception: what the other side refused (`worker.refusal`).
    """
    if message[:1] == worker.REFUSED:
        kind, text, trace = pickle.loads(message[1:])
        if kind == "NotImplementedError":
            raise NotImplementedError(text)
        error = getattr(errors, kind, None)
        if isinstance(error, type) and issubclass(error, EnvFailure):
            raise error(text, trace)
        if isinstance(error, type) and issubclass(error, UserError):
            raise error(text)
        raise EnvQueryFailed(f"an environment's worker raised {kind}: {text}", trace)
    return message[1:]


def _kill(workers: Iterable[_Worker]) -> None:
    """Ends workers and what they have started: SIGTERM, after `TERM_GRACE` seconds SIGKILL; leaves
    no zombie.
    """
    workers = list(workers)
    try:
        for one in workers:
            one.signal_group(signal.SIGTERM)
        _wait(workers, TERM_GRACE)
    finally:
        for one in workers:
            one.signal_group(signal.SIGKILL)
        _wait(workers, TERM_GRACE)
        for one in workers:
            one.release()


def _wait(workers: list[_Worker], seconds: float) -> None:
    deadline = Deadline(seconds)
    for one in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(deadline.remaining())


def _shut_down(workers: list[_Worker], fds: list[int], owner: int) -> None:
    """Closes all workers, gently at first. Must not refer to the environment: it also runs when
    that is collected.
    """
    if os.getpid() != owner:  # a fork of the owner came to its end
        return
    try:
        for one in workers:
            one.send(worker.CLOSE)
        _wait(workers, CLOSE_GRACE)
    finally:
        _kill(workers)
        workers.clear()
        while fds:
            os.close(fds.pop())


def start_message(
    factory: Callable[..., MultiAgentEnv],
    env_args: dict[str, Any],
    worker_setup: Callable[[], None] | None,
) -> dict[str, Any]:
    """What another process needs to build environments, but for the seed.

    Raises:
        ConfigError: `factory` or `env_args` cannot be sent there.
    """
    preparation = spawn.get_preparation_data("environment")
    keys = {"name", "sys_path", "sys_argv", "dir", "orig_dir"}
    try:
        pickled = pickle.dumps(factory)
        pickle.dumps(env_args)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the environment cannot be built in another process ({error}): "
            "define it at the top level of a module, and give plain values in env_args"
        ) from None
    if b"__main__" in pickled:  # only then is the main script worth executing in every worker
        keys |= {"init_main_from_name", "init_main_from_path"}
    return {
        "preparation": {key: value for key, value in preparation.items() if key in keys},
        "factory": pickled,
        "env_args": env_args,
        "setup": pickle.dumps(worker_setup),
    }


class SubprocVectorEnv(AdapterVectorEnv):
    """B `MultiAgentEnv`s, each in a process of its own.

    A worker that dies, raises, reports `env_error` or does not answer within `env_timeout` seconds
    is killed with all that it started, and replaced: after a step, `failed` says so; in a reset,
    the new one takes over at once. Hanging workers cost `env_timeout` once, however many hang at
    the same time.

    Args:
        factory, env_args, n_envs, seed, role, max_env_restarts: see `AdapterVectorEnv`; `factory`
            is pickled by name.
        worker_setup: what every worker does first, e.g. load plug-ins; pickled by name.
        env_timeout: seconds; may be changed later on.
        accounts: see `AdapterVectorEnv`.
        start: the `start_message` of another process, to be handed on as it is.

    Raises:
        ConfigError: `factory` or `env_args` cannot be sent to another process.
        EnvFailure: an environment broke too often in a row; carries the worker's traceback or how
            it died.
        UserError: what the environments refuse, e.g. a map that does not exist.
    """

    def __init__(
        self,
        factory: Callable[..., MultiAgentEnv],
        env_args: dict[str, Any],
        n_envs: int,
        seed: int,
        role: str,
        max_env_restarts: int = 5,
        worker_setup: Callable[[], None] | None = None,
        env_timeout: float = 120.0,
        accounts: Accounts | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.env_timeout = env_timeout
        self._workers: list[_Worker] = []
        self._fds: list[int] = []
        self._memory_fd: int | None = None
        self._usable = True
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._fds, os.getpid())
        self._start_message = start or start_message(factory, env_args, worker_setup)
        super().__init__(factory, env_args, n_envs, seed, role, max_env_restarts, accounts)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; each leads a process group of the same number."""
        return [one.process.pid for one in self._workers]

    def _start(self) -> EnvSpec:
        self._start_workers()
        waiting: Iterable[int] = range(self.n_envs)
        while waiting:
            deadline = Deadline(self.env_timeout)
            broken: dict[int, Broken] = {}
            for b in waiting:
                try:
                    self._workers[b].wait_until_built(deadline)
                except Broken as error:
                    broken[b] = error
                except EnvError as error:
                    raise self._named(b, error) from error
            self._replace(broken)
            waiting = broken
        return self._workers[0].wait_until_built(Deadline(self.env_timeout))

    def _start_workers(self) -> None:
        """Starts all workers, which go on to build their environments."""
        self._fds.extend(os.pipe())
        for b in range(self.n_envs):
            self._workers.append(self._new_worker(b))

    def _new_worker(self, b: int) -> _Worker:
        return _Worker({**self._start_message, "seed": self._host_seed(b)}, alive_fd=self._fds[0])

    def _allocate_all(self, layout: Layout) -> dict[str, np.ndarray]:
        size = worker.memory_size(layout)
        if hasattr(os, "memfd_create"):  # Linux
            self._memory_fd = os.memfd_create("environments")
        else:
            with tempfile.TemporaryFile() as file:
                self._memory_fd = os.dup(file.fileno())
        self._fds.append(self._memory_fd)
        os.ftruncate(self._memory_fd, size)
        return worker.map_arrays(mmap.mmap(self._memory_fd, size), layout)

    def _attach(self) -> None:
        for b in range(self.n_envs):
            self._hand_memory(b)

    def _hand_memory(self, b: int) -> None:
        """Sends worker b the shared memory, where that is there already."""
        if self._memory_fd is not None:
            self._workers[b].attach(self._memory_fd, self.spec, self.n_envs, b)

    def _reset(self, mask: np.ndarray) -> None:
        waiting = np.flatnonzero(mask).tolist()
        message = worker.RESET + (b"" if self._t_env is None else str(self._t_env).encode())
        while waiting:
            replies = self._call(dict.fromkeys(waiting, message))
            waiting = [b for b in waiting if b not in replies]

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        self._arrays["actions"][:] = actions
        replies = self._call(dict.fromkeys(np.flatnonzero(mask).tolist(), worker.STEP))
        broken: dict[int, Broken] = {}
        for b, reply in sorted(replies.items()):
            if self.failed[b]:
                broken[b] = Broken("it reported env_error")
            else:
                self._after_step(b, pickle.loads(reply) if reply else ())
        self._replace(broken)

    def _ask(
        self,
        method: str,
        arguments: Sequence[Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Any]:
        indices = range(self.n_envs) if indices is None else indices
        waiting = {
            b: worker.ASK + pickle.dumps((method, () if arguments is None else (arguments[i],)))
            for i, b in enumerate(indices)
        }
        answers: dict[int, Any] = {}
        while waiting:
            answers |= {b: pickle.loads(reply) for b, reply in self._call(waiting).items()}
            waiting = {b: message for b, message in waiting.items() if b not in answers}
        return [answers[b] for b in indices]

    def _call(self, messages: dict[int, bytes]) -> dict[int, bytes]:
        """Sends commands and collects the answers; workers that break are replaced and missing in
        what is returned.

        Raises:
            EnvFailure: see the class.
            Exception: what an environment refused to do, once all have answered.
        """
        if not self._usable:
            raise RuntimeError(
                "after close(), an interrupted call or an EnvFailure these environments cannot be "
                "used"
            )
        self._usable = False
        for b, message in messages.items():
            self._workers[b].send(message)
        deadline = Deadline(self.env_timeout)
        replies: dict[int, bytes] = {}
        broken: dict[int, Broken] = {}
        refused: Exception | None = None
        # The last one first: when it has answered, most others have too, and this process is woken
        # up less often.
        for b in reversed(messages):
            try:
                replies[b] = self._workers[b].answer(deadline)
            except Broken as error:
                broken[b] = error
            except EnvError as error:
                refused = self._named(b, error)
            except Exception as error:
                refused = error
        self._replace(broken)
        if refused is not None:
            raise refused
        return replies

    def _replace(self, broken: dict[int, Broken]) -> None:
        """Kills broken workers and starts others in their places, which build their environments
        while the run goes on.

        Args:
            broken: number of the environment -> cause.
        """
        self._usable = False
        _kill(self._workers[b] for b in broken)
        for b, cause in sorted(broken.items()):
            if self._memory_fd is not None:
                self._drop_episode(b)
            self._count_failure(b, str(cause), cause.detail)
            self._workers[b] = self._new_worker(b)
            self._hand_memory(b)
        self._usable = True

    def close(self) -> None:
        self._usable = False
        self._finalizer()

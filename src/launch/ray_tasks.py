"""Sweeps on Ray: a task for every run, on an existing cluster or on this machine.

When a node dies, Ray starts its tasks again elsewhere, and they go on from the last checkpoint: in
the folder of the results where the nodes share it, else as it was last copied to the machine of the
launcher, which happens after every checkpoint.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from launch.folder import DONE, FAILED, LOST, RUNNING, RunProcess, Sweep, SweepRun
from launch.jobs import console
from launch.process import side_by_side, thread_environment
from launch.resources import Resources
from launch.table import LiveTable
from utils.errors import MissingPackage, UserError

_SRC = Path(__file__).resolve().parents[1]
_TOKEN = ".shared"
_LOCK_PATIENCE = 120.0  # [s] for a run's process on a node that Ray has given up
_END_PATIENCE = 120.0  # [s] for the checkpoint of a task that is told to end


def check() -> None:
    """
    Raises:
        MissingPackage: without Ray.
    """
    _ray()


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as exc:
        raise MissingPackage(
            "--launcher ray needs Ray: pip install -r requirements-ray.txt"
        ) from exc
    return ray


def run_sweep(sweep: Sweep, address: str | None, jobs: int, files: str) -> list[SweepRun]:
    """Runs what is not finished.

    Args:
        address: of a cluster, `auto`: the one that runs on this machine; None: start one here.
        jobs: at most so many tasks at a time; 0: as many as there is room for.
        files: whether the nodes share the folder of the results: `shared`, `copied`, or `auto`.

    Returns:
        The runs that failed.

    Raises:
        Stopped: by SIGINT or SIGTERM; the runs have written checkpoints.
        UserError: there is no such cluster, or it can never have what a run needs.
    """
    with ray_launcher(sweep.folder, sweep.resources, address, jobs, files) as launcher:
        return _run_all(launcher, sweep)


@contextmanager
def ray_launcher(
    folder: Path, needs: Resources, address: str | None, jobs: int, files: str
) -> Iterator[RayLauncher]:
    """Connects to a cluster, or starts one; see `run_sweep`.

    Raises:
        UserError: there is no such cluster, or it can never have what a run needs.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        _check_room(ray, needs)
        launcher = RayLauncher(ray, folder, needs, jobs, files)
        try:
            yield launcher
        finally:
            launcher.token.file.unlink(missing_ok=True)
    finally:
        ray.shutdown()


class RayLauncher:
    """Starts runs as tasks of a cluster.

    Args:
        folder: below which all runs have their folders.
        jobs: at most so many tasks at a time; 0: as many as there is room for.
    """

    def __init__(
        self, ray: ModuleType, folder: Path, needs: Resources, jobs: int, files: str
    ) -> None:
        self._ray, self._needs, self._jobs, self._files = ray, needs, jobs, files
        text = uuid.uuid4().hex
        self.token = Token(folder / f"{_TOKEN}-{text[:8]}", text)
        folder.mkdir(parents=True, exist_ok=True)
        self.token.file.write_text(text)
        self._store = _store(ray)
        self._work = _task(ray, needs)
        self._n_active = 0

    def room(self) -> bool:
        """Whether one more task may be given to Ray."""
        return not self._jobs or self._n_active < self._jobs

    def start(self, sweep: Sweep, run: SweepRun) -> RayTask | None:
        """The run's task; None: there are enough of them now."""
        if not self.room():
            return None
        self._n_active += 1
        told = self._work.remote(
            run, sweep.folder, self.token, self._files, self._needs, self._store
        )
        return RayTask(self._ray, run, told)

    def ended(self, run: SweepRun) -> None:
        """There may be another task in its place."""
        self._n_active -= 1


def _connect(ray: ModuleType, address: str | None) -> None:
    if ray.is_initialized():  # a program's own
        return
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": str(_SRC)}}}
    if address is None:
        options["include_dashboard"] = False
    try:
        ray.init(address=address or "local", log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        said = str(exc).strip().splitlines()
        raise UserError(f"no Ray cluster at {address}: {said[0] if said else exc}") from exc


def _check_room(ray: ModuleType, needs: Resources) -> None:
    """Ray itself would wait for such a node without end."""
    asked = {"CPU": float(needs.cores), "GPU": needs.gpus, **needs.named}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        if all(node.get(name, 0.0) >= amount for name, amount in asked.items()):
            return
    wanted = ", ".join(f"{name} {amount:g}" for name, amount in asked.items() if amount)
    raise UserError(f"no node of the cluster has what a run needs: {wanted}")


def _run_all(launcher: RayLauncher, sweep: Sweep) -> list[SweepRun]:
    todo = deque(run for run in sweep.runs if run.state() != DONE)
    failed: list[SweepRun] = []
    table = LiveTable(sweep, done=len(sweep.runs) - len(todo), live=console.is_terminal)

    def start(run: SweepRun) -> RayTask | None:
        return launcher.start(sweep, run)

    def ended(run: SweepRun, process: RayTask, code: int) -> None:
        launcher.ended(run)
        state = run.state(alive=False)
        if state != DONE and process.said:
            console.print(process.said, markup=False, highlight=False, soft_wrap=True)
        table.ended(run, state)
        if state in (FAILED, LOST):
            failed.append(run)

    def tick(running: Sequence[RayTask], stopping: bool) -> None:
        at_work = [task.run for task in running if task.run.state(alive=True) == RUNNING]
        table.show(at_work, stopping)

    with table:
        side_by_side(todo, start, ended, tick)
    return failed


class RayTask:
    """A task of Ray as `side_by_side` sees it."""

    def __init__(self, ray: ModuleType, run: SweepRun, told: Any) -> None:
        self.run, self.said = run, ""
        self._ray, self._told = ray, told
        self._code: int | None = None
        self._stopped: float | None = None

    def poll(self) -> int | None:
        """The exit code of the run; None: it is not over."""
        if self._code is None and self._ray.wait([self._told], timeout=0)[0]:
            self._code = self._result()
        return self._code

    def stop(self) -> None:
        """The task ends its run with a checkpoint."""
        self._stopped = time.monotonic()
        self._ray.cancel(self._told, force=False)

    def abort(self) -> None:
        """The task is killed, and its run with it."""
        self._ray.cancel(self._told, force=True)

    def wait(self) -> int:
        """The exit code once it is over."""
        while (code := self.poll()) is None:
            time.sleep(0.2)
        return code

    def _result(self) -> int | None:
        exceptions = self._ray.exceptions
        try:
            return int(self._ray.get(self._told))
        except exceptions.TaskCancelledError:
            # Ray says so at once; the run's checkpoint takes a moment.
            last = self.run.events()[-1:]
            late = self._stopped is None or time.monotonic() > self._stopped + _END_PATIENCE
            return 143 if late or not last or "code" in last[0] else None
        except exceptions.RayError as exc:
            self.said = str(exc).strip().splitlines()[-1]
            return 1


def _task(ray: ModuleType, needs: Resources) -> Any:
    """The remote function, with what it needs."""
    options: dict[str, Any] = {"num_cpus": needs.cores, "num_gpus": needs.gpus, "max_retries": -1}
    if needs.memory is not None:
        options["memory"] = needs.memory * 1e9
    if needs.named:
        options["resources"] = dict(needs.named)
    return ray.remote(**options)(work)


# --- On the nodes ---


class Token(NamedTuple):
    """A file in the launcher's folder, and what is in it: whoever reads that sees the folder."""

    file: Path
    text: str


def work(
    run: SweepRun, folder: Path, token: Token, files: str, needs: Resources, store: Any
) -> int:
    """One run on the node that Ray has chosen.

    Args:
        folder: of the sweep's results, as the launcher sees it.
        token: tells whether this node sees the launcher's files.
        files: see `run_sweep`.
        store: actor that keeps the folder of the run where it is not shared.

    Returns:
        The exit code of the run.
    """
    ray = _ray()
    shared = files == "shared" or (files == "auto" and _sees(token))
    if not shared:
        run = replace(run, folder=_node_folder(run, token.text))
        content = ray.get(store.read.remote(str(folder), run.key))
        if content is not None:
            unpack(content, run.folder)
    env = thread_environment(needs.cores)
    if not needs.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    env.pop("PYTHONPATH", None)
    about = {"launcher": "ray", "job": ray.get_runtime_context().get_node_id()[:12]}
    process = RunProcess(run, env, about, _LOCK_PATIENCE)
    send = _nothing if shared else _Copies(ray, store, str(folder), run).send
    try:
        while (code := process.poll()) is None:
            time.sleep(0.5)
            send(False)
    except KeyboardInterrupt:  # Ray cancels the task
        process.stop()
        code = process.wait()
    send(True)
    return code


def _nothing(final: bool) -> None:
    """The launcher sees the files."""


def _sees(token: Token) -> bool:
    try:
        return token.file.read_text() == token.text
    except OSError:
        return False


def _node_folder(run: SweepRun, token: str) -> Path:
    """A run's folder on this node, for this task: emptied, for what was copied last counts."""
    folder = Path(tempfile.gettempdir()) / f"sweep-{token[:12]}-{os.getpid()}" / run.key
    shutil.rmtree(folder, ignore_errors=True)
    return folder


class _Copies:
    """Sends a run's folder to the launcher whenever there is a new checkpoint, and at its end."""

    def __init__(self, ray: ModuleType, store: Any, folder: str, run: SweepRun) -> None:
        self._ray, self._store, self._folder, self._run = ray, store, folder, run
        self._sent: set[str] = set()

    def send(self, final: bool) -> None:
        there = {str(path) for path in self._run.folder.glob("sacred/*/*/*/checkpoints/[0-9]*")}
        if not final and there <= self._sent:
            return
        try:
            content = pack(self._run.folder)
        except FileNotFoundError:  # the run was pruning its checkpoints: the next time
            return
        self._ray.get(self._store.write.remote(self._folder, self._run.key, content))
        self._sent = there
        if final:
            shutil.rmtree(self._run.folder, ignore_errors=True)


class Store:
    """Keeps the folders of runs on the launcher's machine."""

    def read(self, folder: str, key: str) -> bytes | None:
        """The folder of a run, if there is one."""
        path = Path(folder, "runs", key)
        return pack(path) if path.is_dir() else None

    def write(self, folder: str, key: str, content: bytes) -> None:
        """Takes the place of what was there."""
        unpack(content, Path(folder, "runs", key))


def _store(ray: ModuleType) -> Any:
    """The actor, on this machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Store).remote()


def pack(folder: Path) -> bytes:
    """A folder as a tar file, without locks and half-written checkpoints."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden and path.name != "lock":
                tar.add(path, str(path.relative_to(folder)))
    return buffer.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Makes the folder what was packed; whoever looks meanwhile finds the old one or the new."""
    partial = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(partial, filter="data")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)

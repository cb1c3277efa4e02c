"""A sweep on disk: `results/NAME/sweep.json` says which runs it has; `runs/KEY/` is one of them.

`runs/KEY/` holds the run's own results (`sacred/`), its output (`log.txt`) and `events.jsonl`, a
line whenever it is started or ends. Each run writes into its own folder only, so that thousands of
them on many machines never wait for one another, and `resume=auto` finds its run without reading
the others. There is no other state: what became of a run is read from its folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from launch.jobs import FinishedRun, Job, finished_runs
from launch.process import ENDED_BY_SIGNAL, Child
from launch.resources import Resources
from utils.config import safe_name
from utils.errors import UserError

PLAN = "sweep.json"
EVENTS = "events.jsonl"
_LOCK = "lock"

# What becomes of a run, in the order of `status`.
RUNNING, WAITING, STOPPED, LOST, FAILED, DONE = (
    *("running", "waiting", "stopped", "lost", "failed"),
    "done",
)
STATES = (RUNNING, WAITING, STOPPED, LOST, FAILED, DONE)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        key: the name of its folder: algorithm, map, seed, and a digest of the settings.
        folder: `results/NAME/runs/KEY`.
    """

    key: str
    job: Job
    folder: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / "log.txt"

    @property
    def results(self) -> Path | None:
        """The folder of its metrics and checkpoints, once there is one: the newest, where one was
        killed before its first checkpoint and the run began anew.
        """
        found = (self.folder / "sacred").glob("*/*/[0-9]*")
        return max(found, key=lambda path: (len(path.name), path.name), default=None)

    def events(self) -> list[dict[str, Any]]:
        """What has happened to it, oldest first."""
        try:
            lines = (self.folder / EVENTS).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith(b"}")]  # not a torn one

    def note(self, event: str, **more: Any) -> None:
        """Appends an event, with the time and this machine's name."""
        entry = {"event": event, "time": round(time.time(), 3), "host": socket.gethostname()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / EVENTS, "a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, **more}) + "\n")

    def state(self, events: list[dict[str, Any]] | None = None, alive: bool | None = None) -> str:
        """One of `STATES`.

        Args:
            events: its events where they have been read already.
            alive: whether a scheduler has it at work; None: what this machine knows.
        """
        events = self.events() if events is None else events
        if not events:
            return WAITING
        last = events[-1]
        if last["event"] == "start":
            return RUNNING if (self.locked() if alive is None else alive) else LOST
        if last["code"] == 0:
            return DONE
        return STOPPED if last["code"] in ENDED_BY_SIGNAL else FAILED

    def locked(self) -> bool:
        """Whether a process on this machine has it at work."""
        try:
            with open(self.folder / _LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def last_line(self) -> str:
        """The last line of its output."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, and what each of them needs."""

    folder: Path
    name: str
    launcher: str
    runs: tuple[SweepRun, ...]
    resources: Resources
    slurm: Mapping[str, Any]

    def save(self) -> None:
        """Writes `sweep.json`."""
        runs = [
            [run.key, run.job.algorithm, run.job.environment, dict(run.job.settings)]
            for run in self.runs
        ]
        content = {
            "name": self.name,
            "launcher": self.launcher,
            "resources": asdict(self.resources),
            "slurm": dict(self.slurm),
            "runs": runs,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{PLAN}.{os.getpid()}"
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, self.folder / PLAN)

    def adopt(self) -> None:
        """Counts runs that `python -m experiments` has finished in the same folder."""
        by_seed: dict[Any, list[FinishedRun]] = {}
        for found in finished_runs(self.folder):
            if not found.path.is_relative_to(self.folder / "runs"):
                by_seed.setdefault(found.config["seed"], []).append(found)
        for run in self.runs if by_seed else ():
            same_seed = by_seed.get(run.job.settings["seed"], [])
            if not run.events() and (done := run.job.find(same_seed)) is not None:
                run.note("found", code=0, results=str(done.path))


def plan(jobs: Iterable[Job], folder: Path) -> tuple[SweepRun, ...]:
    """A folder for every job."""
    return tuple(SweepRun(key, job, folder / "runs" / key) for job in jobs if (key := _key(job)))


def load_sweep(folder: Path) -> Sweep:
    """The sweep whose results are in a folder.

    Raises:
        UserError: there is none.
    """
    try:
        content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise UserError(f"no sweep in {folder}: start one with `sweep SPEC.yaml`") from exc
    runs = tuple(
        SweepRun(key, Job(algorithm, environment, settings), folder / "runs" / key)
        for key, algorithm, environment, settings in content["runs"]
    )
    resources = Resources(**content["resources"])
    return Sweep(folder, content["name"], content["launcher"], runs, resources, content["slurm"])


def _key(job: Job) -> str:
    game = (job.settings.get(key) for key in ("env_args.map_name", "env_args.key"))
    place = next((str(name) for name in game if name), Path(job.environment).stem)
    told = "\n".join([job.algorithm, job.environment, *sorted(job.updates())])
    digest = hashlib.sha256(told.encode()).hexdigest()[:10]
    return safe_name(
        "-".join([Path(job.algorithm).stem, place, f"s{job.settings['seed']}", digest])
    )


class AtWork(UserError):
    """Another process has a folder."""


class RunProcess:
    """A run of a sweep as a process of this machine; its start and end are noted in its folder.

    Args:
        env: of the process.
        about: noted with the start (`launcher`, `job`).
        patience: seconds to wait for another process that has the run at work.

    Raises:
        AtWork: another process has the run at work.
    """

    def __init__(
        self,
        run: SweepRun,
        env: Mapping[str, str],
        about: Mapping[str, Any],
        patience: float = 5.0,
    ) -> None:
        self.run = run
        self._ended: int | None = None
        run.folder.mkdir(parents=True, exist_ok=True)
        # The run inherits the lock and holds it even where the launcher is killed.
        with lock_file(run.folder / _LOCK, patience) as lock, open(run.log, "ab") as log:
            self._child = Child(run.job.command(run.folder), log, env, [lock.fileno()])
            run.note("start", pid=self._child.pid, **about)

    def poll(self) -> int | None:
        """The exit code, or None while it is at work."""
        return self._note(self._child.poll())

    def stop(self) -> None:
        """See `Child.stop`."""
        self._child.stop()

    def abort(self) -> None:
        """See `Child.abort`."""
        self._child.abort()

    def wait(self) -> int:
        """The exit code once it has ended."""
        code = self._note(self._child.wait())
        assert code is not None  # it has ended
        return code

    def _note(self, code: int | None) -> int | None:
        if code is not None and self._ended is None:
            self._ended = code
            self.run.note("end", code=code)
        return code


def lock_file(path: Path, patience: float) -> IO[str]:
    """The file, open and locked until its last holder closes it.

    Args:
        patience: seconds to wait for another process that has it.

    Raises:
        AtWork: another process has it.
    """
    file = open(path, "w")  # noqa: SIM115 - whoever asked closes it
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= deadline:
                file.close()
                raise AtWork(f"{path.parent} is at work in another process") from exc
            time.sleep(0.1)
        else:
            return file

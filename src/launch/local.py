"""Runs on this machine, side by side."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launch.folder import DONE, FAILED, AtWork, RunProcess, Sweep, SweepRun
from launch.jobs import FinishedRun, Job, console, finished_runs
from launch.process import ENDED_BY_SIGNAL, Child, Stopped, side_by_side, thread_environment
from launch.resources import Resources
from launch.table import LiveTable
from utils.errors import RunFailure, UserError

_GB = 1e9


# --- Cores, memory and GPUs ---


@dataclass
class Machine:
    """What is free on this machine.

    Attributes:
        free: cores, memory [GB], places for runs, and what `--have` names.
        gpus: GPU -> its free share.
    """

    free: dict[str, float]
    gpus: dict[str, float] = field(default_factory=dict)

    @classmethod
    def here(
        cls, runs: int = 0, gpus: Sequence[str] | None = None, have: Mapping[str, float] = {}
    ) -> Machine:
        """This machine.

        Args:
            runs: at most so many runs at a time; 0: as many as there are cores for.
            gpus: their numbers; None: all that are visible.
            have: what else there is, by name.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
        # Whoever asks for more runs than there are cores shall have them.
        cores = math.inf if runs else float(len(os.sched_getaffinity(0)))
        free = {"runs": float(runs or math.inf), "cores": cores, "memory": memory, **have}
        names = visible_gpus() if gpus is None else gpus
        return cls(free, dict.fromkeys(names, 1.0))

    def check(self, needs: Resources) -> None:
        """
        Raises:
            UserError: a run needs more than there is.
        """
        for name, amount in _counted(needs).items():
            if name not in self.free:
                raise UserError(
                    f"a run needs {name}: say how many this machine has with --have {name}=N"
                )
            if amount > self.free[name]:
                raise UserError(
                    f"a run needs {amount:g} of {name}, this machine has {self.free[name]:.3g}"
                )
        if needs.gpus > len(self.gpus):
            raise UserError(f"a run needs {needs.gpus:g} GPUs, this machine has {len(self.gpus)}")

    def take(self, needs: Resources) -> list[str] | None:
        """The GPUs of a run that may start now; None: there is no room for it."""
        counted = _counted(needs)
        if any(amount > self.free[name] for name, amount in counted.items()):
            return None
        share = min(needs.gpus, 1.0)
        # The fullest GPU first: a run that needs a whole one finds one.
        fitting = sorted(
            (gpu for gpu, free in self.gpus.items() if free >= share - 1e-9),
            key=self.gpus.__getitem__,
        )
        wanted = int(-(-needs.gpus // 1))
        if len(fitting) < wanted:
            return None
        self._change(needs, fitting[:wanted], -1)
        return fitting[:wanted]

    def give_back(self, needs: Resources, gpus: Sequence[str]) -> None:
        """What `take` gave is free again."""
        self._change(needs, gpus, 1)

    def _change(self, needs: Resources, gpus: Sequence[str], sign: int) -> None:
        for name, amount in _counted(needs).items():
            self.free[name] += sign * amount
        for gpu in gpus:
            self.gpus[gpu] += sign * min(needs.gpus, 1.0)


def _counted(needs: Resources) -> dict[str, float]:
    counted = {"runs": 1.0, "cores": float(needs.cores), **needs.named}
    return counted if needs.memory is None else {**counted, "memory": needs.memory}


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return [name.strip() for name in names if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(i) for i, line in enumerate(x for x in lines if x.startswith("GPU "))]


# --- A sweep ---


class LocalLauncher:
    """Starts runs as processes of this machine, as long as there is room.

    Args:
        patience: seconds to wait for another process that has a run at work.

    Raises:
        UserError: the machine can never have what a run needs.
    """

    def __init__(self, machine: Machine, needs: Resources, patience: float = 5.0) -> None:
        machine.check(needs)
        self._machine, self._needs, self._patience = machine, needs, patience
        self._gpus: dict[Path, list[str]] = {}

    def room(self) -> bool:
        """Whether one more run can start now."""
        given = self._machine.take(self._needs)
        if given is not None:
            self._machine.give_back(self._needs, given)
        return given is not None

    def start(self, sweep: Sweep, run: SweepRun) -> RunProcess | None:
        """The run's process; None: there is no room for it now.

        Raises:
            AtWork: another process has the run at work.
        """
        given = self._machine.take(self._needs)
        if given is None:
            return None
        env = thread_environment(self._needs.cores)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(given)
        try:
            process = RunProcess(run, env, {"launcher": "local"}, self._patience)
        except AtWork:
            self._machine.give_back(self._needs, given)
            raise
        self._gpus[run.folder] = given
        return process

    def ended(self, run: SweepRun) -> None:
        """What the run used is free again."""
        self._machine.give_back(self._needs, self._gpus.pop(run.folder))


def run_sweep(sweep: Sweep, machine: Machine, live: bool) -> list[SweepRun]:
    """Runs what is not finished.

    Args:
        live: show a table that is kept up to date; else a line when a run starts or ends.

    Returns:
        The runs that failed.

    Raises:
        Stopped: by SIGINT or SIGTERM; the runs have written checkpoints.
        UserError: the machine lacks what a run needs.
    """
    launcher = LocalLauncher(machine, sweep.resources)
    todo = deque(run for run in sweep.runs if run.state() != DONE)
    failed: list[SweepRun] = []
    table = LiveTable(sweep, done=len(sweep.runs) - len(todo), live=live)

    def start(run: SweepRun) -> RunProcess | None:
        process = launcher.start(sweep, run)
        if process is not None:
            table.started(run)
        return process

    def ended(run: SweepRun, process: RunProcess, code: int) -> None:
        launcher.ended(run)
        state = run.state()
        table.ended(run, state)
        if state == FAILED:
            failed.append(run)

    def tick(running: Sequence[RunProcess], stopping: bool) -> None:
        table.show([process.run for process in running], stopping)

    with table:
        side_by_side(todo, start, ended, tick)
    return failed


# --- Runs of an experiment ---


class _JobProcess(Child):
    """A run that writes straight into the results of its experiment."""

    def __init__(self, job: Job, results: Path, env: Mapping[str, str], output: IO[bytes]) -> None:
        super().__init__(job.command(results), output, env)
        self.output, self.start = output, time.monotonic()


def run_jobs(
    jobs: Sequence[Job], results: Path, processes: int = 0, kept: Path | None = None
) -> list[Path]:
    """Runs all jobs that are not finished yet, until the first one fails.

    Args:
        results: folder of the runs' results; an interrupted experiment goes on from there.
        processes: how many at once; 0: one per processor. Each uses one thread if there are
            several.
        kept: runs published here count as done as well.

    Returns:
        The jobs' runs, in their order: folders, or files of published runs.

    Raises:
        UserError, RunFailure: a job failed (UserError: with exit code 2); the others have been
            ended.
        KeyboardInterrupt, SystemExit: by SIGINT, by SIGTERM; the runs have written checkpoints.
    """
    processes = processes or len(os.sched_getaffinity(0))
    there = finished_runs(results, kept)
    todo = deque(job for job in jobs if job.find(there) is None)
    n_todo, n_active = len(todo), 0
    console.log(
        f"{len(jobs) - n_todo} of {len(jobs)} runs are there already, {processes} at a time, in "
        f"{results}"
    )
    env = dict(os.environ) if processes == 1 else thread_environment(1)

    def start(job: Job) -> _JobProcess | None:
        nonlocal n_active
        if n_active == processes:
            return None
        n_active += 1
        # Open for as long as the run.
        return _JobProcess(job, results, env, tempfile.TemporaryFile())

    def ended(job: Job, process: _JobProcess, code: int) -> None:
        nonlocal n_active
        n_active -= 1
        if code in ENDED_BY_SIGNAL:  # with all others, or `_required` misses it
            return
        _check(job, process, code)
        n_done = n_todo - len(todo) - n_active
        seconds = time.monotonic() - process.start
        console.log(f"done ({n_done}/{n_todo}, {seconds:.0f} s): {job}")

    try:
        side_by_side(todo, start, ended)
    except Stopped as exc:
        if exc.signum == signal.SIGINT:
            raise KeyboardInterrupt from exc
        sys.exit(128 + exc.signum)
    there = finished_runs(results, kept)
    return [_required(job, there, results) for job in jobs]


def _check(job: Job, process: _JobProcess, code: int) -> None:
    """Raises what a run that has ended says went wrong."""
    if code == 0:
        return
    process.output.seek(0)
    tail = process.output.read().decode(errors="replace").strip()[-2000:]
    if code == 2:  # main.py's for what the user must change, in its last line
        raise UserError(f"{tail.splitlines()[-1].removeprefix('error: ')} ({job})")
    raise RunFailure(f"{job} ended with exit code {code}:\n{tail}")


def _required(job: Job, there: Iterable[FinishedRun], results: Path) -> Path:
    found = job.find(there)
    if found is None:
        raise RunFailure(f"{job} left no completed run in {results}")
    return found.path

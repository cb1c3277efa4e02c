"""Sweeps on Slurm, as job arrays of submitit.

A task of an array is one run, or as many as share a GPU. Slurm's signals end it with checkpoints
(`Work`), and whatever Slurm starts again goes on from there.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.folder import DONE, FAILED, RUNNING, WAITING, RunProcess, Sweep, SweepRun, load_sweep
from launch.jobs import console
from launch.process import Stopped, side_by_side, thread_environment
from utils.errors import MissingPackage, RunFailure, UserError

_SUBMITTED = "submitted.jsonl"
_CANCELLED = "cancelled"
_NO_LIMIT = 10**6  # of jobs that one run may take one after another
_WARNING = 120  # [s] before its time limit that a job is told to end
_LOCK_PATIENCE = 120.0  # [s] for a run's process on a node that Slurm has given up
_LOOK_EVERY = 5.0  # [s] between looks at the queue
_END_PATIENCE = 90.0  # [s] that an ended job waits for Slurm to requeue or cancel it


_log = logging.getLogger(__name__)


# --- In a job ---


class Work:
    """What a job does: the runs of these keys, side by side.

    submitit calls `checkpoint` when Slurm announces the time limit, and then requeues the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[RunProcess] = []

    def __call__(self, keys: Sequence[str]) -> None:
        """
        Raises:
            RunFailure: a run failed, or Slurm ended the job before its runs were done.
        """
        # submitit listens to SIGUSR2; whoever sends the more usual SIGUSR1 means the same.
        signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGUSR2))
        sweep = load_sweep(self.folder)
        by_key = {run.key: run for run in sweep.runs}
        runs = [by_key[key] for key in keys if key in by_key]
        todo = deque(run for run in runs if run.state(alive=False) != DONE)
        about = {"launcher": "slurm", "job": _job_id()}
        env = thread_environment(sweep.resources.cores)
        # srun has a Python path for submitit; a run has its own.
        env.pop("PYTHONPATH", None)

        def start(run: Any) -> RunProcess:
            process = RunProcess(run, env, about, _LOCK_PATIENCE)
            self._running.append(process)
            return process

        try:
            side_by_side(todo, start, lambda run, process, code: self._running.remove(process))
        except Stopped as exc:
            self._await_slurm()
            raise RunFailure(str(exc)) from exc
        failed = [run.key for run in runs if run.state(alive=False) == FAILED]
        if failed:
            raise RunFailure(f"failed: {', '.join(failed)}")

    def checkpoint(self, keys: Sequence[str]) -> Any:
        """Ends the runs with checkpoints; what is to be done in the next job."""
        from submitit.helpers import DelayedSubmission

        running, self._running = self._running, []
        for process in running:
            process.stop()
        for process in running:
            process.wait()
        return DelayedSubmission(Work(self.folder), list(keys))

    def _await_slurm(self) -> None:
        """After SIGTERM. A preempted job that ended by itself would not be requeued."""
        deadline = time.monotonic() + _END_PATIENCE
        while time.monotonic() < deadline and not _cancelled(self.folder).exists():
            time.sleep(0.5)


def _job_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _cancelled(folder: Path) -> Path:
    return folder / "slurm" / _CANCELLED


# --- Where jobs are submitted ---


def check() -> None:
    """
    Raises:
        MissingPackage: without submitit.
        UserError: without Slurm.
    """
    _submitit()
    if shutil.which("sbatch") is None:
        raise UserError("--launcher slurm needs Slurm's commands (sbatch) on this machine")


def run_sweep(sweep: Sweep, jobs: int) -> int:
    """Submits what is neither done nor in the queue, and says how much that is.

    Args:
        jobs: at most so many jobs of an array at a time; 0: no limit.

    Returns:
        0.

    Raises:
        UserError: Slurm refuses the jobs.
    """
    waiting = queued(sweep)
    todo = [
        run.key for run in sweep.runs if run.key not in waiting and run.state(alive=False) != DONE
    ]
    n_done = len(sweep.runs) - len(todo) - len(waiting)
    console.print(
        f"{n_done} of {len(sweep.runs)} runs are done, {len(waiting)} are in the queue already",
        highlight=False,
    )
    if todo:
        n_jobs = _submit(sweep, todo, jobs)
        console.print(
            f"{len(todo)} runs submitted in {n_jobs} jobs; results: {sweep.folder}",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _submit(sweep: Sweep, todo: Sequence[str], jobs: int) -> int:
    """Submits the runs of these keys; the number of jobs."""
    submitit = _submitit()
    _cancelled(sweep.folder).unlink(missing_ok=True)
    packs = [list(pack) for pack in _chunks(todo, sweep.resources.runs_per_gpu)]
    executor = _executor(submitit, sweep, jobs)
    for part in _chunks(packs, _largest_array()):
        try:
            with redirect_stderr(io.StringIO()):  # submitit shows there what it raises as well
                submitted = executor.map_array(Work(sweep.folder), part)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as e:
            said = [line for line in str(e).splitlines() if "error:" in line] or [str(e)]
            text = said[0].split("error:")[-1].strip()
            raise UserError(
                f"Slurm refuses the jobs: {text}; what was submitted before stays in the queue, "
                "the same command submits the rest"
            ) from e
        _note_submitted(sweep, [job.job_id for job in submitted], part)
    return len(packs)


def queued(sweep: Sweep) -> dict[str, str]:
    """Key -> `running` or `waiting`, of the runs whose jobs are in Slurm's queue.

    Raises:
        UserError: Slurm does not answer.
    """
    jobs = _submitted(sweep)
    return _states(jobs, _queue()) if jobs else {}


def _queue() -> dict[str, str]:
    """Job -> `running` or `waiting`, of all jobs of this user."""
    lines = _slurm("squeue", "--me", "-h", "-r", "-o", "%i %T").splitlines()
    return {
        job: RUNNING if state in ("RUNNING", "COMPLETING") else WAITING
        for job, state in map(str.split, lines)
    }


def _states(jobs: Mapping[str, Sequence[str]], queue: Mapping[str, str]) -> dict[str, str]:
    """Key -> state, of the runs of those jobs that are in the queue."""
    return {key: queue[job] for job, keys in jobs.items() if job in queue for key in keys}


def cancel(sweep: Sweep) -> int:
    """Takes the sweep's jobs out of the queue; those at work write checkpoints first.

    Returns:
        How many jobs there were.
    """
    there = _queue()
    jobs = [job for job in _submitted(sweep) if job in there]
    if jobs:
        _cancelled(sweep.folder).touch()
        # Whole arrays where nothing else is left of them: 10,000 numbers are too long a line.
        _slurm("scancel", *sorted({job.partition("_")[0] for job in jobs}))
    return len(jobs)


class SlurmLauncher:
    """Starts the runs of several sweeps as jobs, and looks after them.

    Args:
        jobs: so many runs at a time; the runs of one sweep are submitted together.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._n_active = 0
        self._attached: dict[Path, set[str]] = {}  # sweep -> keys that are submitted, not started
        self._cancelled: set[Path] = set()
        self._seen: dict[str, str] = {}
        self._next_look = 0.0

    def room(self) -> bool:
        """Whether one more sweep may be submitted."""
        return self._n_active < self._jobs

    def start(self, sweep: Sweep, run: SweepRun) -> SlurmRun:
        """The run in Slurm's queue."""
        started = SlurmRun(self, sweep, run)
        waiting = self._attached.get(sweep.folder)
        if waiting is None:
            sweep.save()
            there = queued(sweep)
            todo = [
                each.key
                for each in sweep.runs
                if each.key not in there and each.state(alive=False) != DONE
            ]
            waiting = self._attached[sweep.folder] = {*todo, *there}
        else:
            todo = [] if run.key in waiting else [run.key]
        if todo:
            _submit(sweep, todo, 0)
        self._cancelled.discard(sweep.folder)
        self._next_look = 0.0
        waiting.discard(run.key)
        self._n_active += 1
        return started

    def ended(self, run: SweepRun) -> None:
        """There may be another run in its place."""
        self._n_active -= 1

    def waits(self, sweep: Sweep, run: SweepRun) -> bool:
        """Whether the run is in the queue, at work or not; as of a few seconds ago."""
        if time.monotonic() >= self._next_look:
            try:
                self._seen = _queue()
            except UserError as exc:  # a controller that is busy answers the next time
                _log.warning("%s", exc)
            self._next_look = time.monotonic() + _LOOK_EVERY
        return run.key in _states(_submitted(sweep), self._seen)

    def cancel(self, sweep: Sweep) -> None:
        """Ends all runs of a sweep with checkpoints; to ask again changes nothing."""
        if sweep.folder not in self._cancelled:
            self._cancelled.add(sweep.folder)
            self._attached.pop(sweep.folder, None)
            cancel(sweep)


class SlurmRun:
    """A run in Slurm's queue as `side_by_side` sees it."""

    def __init__(self, launcher: SlurmLauncher, sweep: Sweep, run: SweepRun) -> None:
        self._launcher, self._sweep, self._run = launcher, sweep, run
        self._before = len(run.events())
        self._code: int | None = None
        self._next_poll = 0.0

    def poll(self) -> int | None:
        """The exit code of the run; None: it is not over."""
        if self._code is None and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + 1.0
            over = self._noted()
            # What a signal has ended may be requeued.
            if over is not None and over < 128:
                self._code = over
            elif not self._launcher.waits(self._sweep, self._run):
                self._code = self._noted() or 128 + signal.SIGKILL
        return self._code

    def _noted(self) -> int | None:
        """The exit code in the run's folder, since the start."""
        events = self._run.events()[self._before :]
        return events[-1].get("code") if events else None

    def stop(self) -> None:
        """Cancels the sweep that the run belongs to; its runs write checkpoints."""
        self._launcher.cancel(self._sweep)

    def abort(self) -> None:
        """See `stop`: Slurm kills what does not end in time."""
        self.stop()

    def wait(self) -> int:
        """The exit code once it is over."""
        while (code := self.poll()) is None:
            time.sleep(0.5)
        return code


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError as exc:
        raise MissingPackage(
            "--launcher slurm needs submitit: pip install -r requirements-slurm.txt"
        ) from exc
    return submitit


def _executor(submitit: ModuleType, sweep: Sweep, jobs: int) -> Any:
    folder = sweep.folder / "slurm"
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_NO_LIMIT)
    executor.update_parameters(**parameters(sweep, jobs))
    return executor


def parameters(sweep: Sweep, jobs: int) -> dict[str, Any]:
    """submitit's parameters of a job, with `sbatch`'s options under `additional_parameters`."""
    needs, n_runs = sweep.resources, sweep.resources.runs_per_gpu
    options: dict[str, Any] = {"requeue": True, **sweep.slurm}
    values: dict[str, Any] = {
        "job_name": sweep.name,
        "cpus_per_task": needs.cores * n_runs,
        "ntasks_per_node": 1,
        "nodes": 1,
        "array_parallelism": jobs or _NO_LIMIT,
        "signal_delay_s": _WARNING,
        "setup": [f"export PYTHONPATH={Path(__file__).resolve().parents[1]}"],
        "srun_args": [f"--cpus-per-task={needs.cores * n_runs}"],
        "stderr_to_stdout": True,
    }
    if needs.hours is not None:
        values["time"] = max(round(needs.hours * 60), 1)
        values["signal_delay_s"] = min(_WARNING, round(needs.hours * 3600 / 4))
    if needs.memory is not None:
        options["mem"] = f"{round(needs.memory * n_runs * 1000)}M"
    if needs.gpus:
        options["gpus-per-node"] = round(needs.gpus) if n_runs == 1 else 1
    if needs.named:
        counts = (f"{name}:{round(amount * n_runs)}" for name, amount in needs.named.items())
        options["licenses"] = ",".join(counts)
    return {**values, "additional_parameters": options}


def _largest_array() -> int:
    """Tasks that an array may have here."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config"))
    return max(int(found[1]) - 1, 1) if found else 1000


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _note_submitted(sweep: Sweep, jobs: Sequence[str], packs: Sequence[Sequence[str]]) -> None:
    with open(sweep.folder / "slurm" / _SUBMITTED, "a", encoding="utf-8") as file:
        for job, keys in zip(jobs, packs, strict=True):
            file.write(json.dumps([job, keys]) + "\n")


def _submitted(sweep: Sweep) -> dict[str, list[str]]:
    """Job -> keys of its runs."""
    try:
        lines = (sweep.folder / "slurm" / _SUBMITTED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return dict(json.loads(line) for line in lines)


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise UserError(f"{command[0]} is not there: is this a machine of the cluster?") from exc
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise UserError(f"{command[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout

"""Many runs through the ordinary command line, a few at a time; what is done already is not done
again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from analysis import published
from analysis.runs import flatten, is_setting
from experiments import ROOT
from utils.config import build_config
from utils.errors import RunFailure, UserError

console = Console()

# Values that older runs have under another name.
_RENAMED = {("consensus_scope", "attention"): "paper"}


@dataclass(frozen=True)
class FinishedRun:
    """A completed run: its folder, or the file of a published one, and its configuration."""

    path: Path
    config: Mapping[str, Any]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All values with dotted keys."""
        values = dict(flatten(self.config))
        return {
            key: _RENAMED.get((key, value), value) if isinstance(value, str) else value
            for key, value in values.items()
        }


@dataclass(frozen=True)
class Job:
    """One run: `python src/main.py --config=ALGORITHM --env-config=ENVIRONMENT with SETTINGS`.

    Args:
        settings: key -> value; entries of mappings as `env_args.map_name`. A `seed` belongs here.
    """

    algorithm: str
    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.algorithm, self.environment, *self.updates()])

    def updates(self) -> list[str]:
        """The settings as they are typed on the command line."""
        return [f"{key}={value}" for key, value in self.settings.items()]

    def command(self, results: Path) -> list[str]:
        """The command line; an unfinished run of the same job is continued."""
        files = [f"--config={self.algorithm}", f"--env-config={self.environment}"]
        fixed = [f"local_results_path={results}", "resume=auto"]
        program = [sys.executable, str(ROOT / "src" / "main.py")]
        return [*program, *files, "with", *fixed, *self.updates()]

    def find(self, runs: Iterable[FinishedRun]) -> FinishedRun | None:
        """The first of these runs that is one of this job, if there is one."""
        return next((run for run in runs if self._describes(run.settings)), None)

    def finished_run(self, results: Path) -> Path | None:
        """The folder of a completed run of this job in a folder of results, if there is one."""
        found = self.find(finished_runs(results))
        return found.path if found else None

    def _describes(self, found: Mapping[str, Any]) -> bool:
        """Whether a run with these settings is one of this job: named settings are equal, and so
        are all others that make a difference, as far as the run knows them.
        """
        if any(found.get(key) != value for key, value in self.settings.items()):
            return False
        others = tuple(update for update in self.updates() if not update.startswith("seed="))
        wanted = _whole_config(self.algorithm, self.environment, others)
        return all(found.get(key, value) == value for key, value in wanted.items())


@lru_cache(maxsize=1024)
def _whole_config(algorithm: str, environment: str, updates: tuple[str, ...]) -> dict[str, Any]:
    """What makes a run what it is, by dotted key."""
    config = build_config(algorithm, environment, updates)
    return {key: value for key, value in flatten(config) if is_setting(key)}


def finished_runs(results: Path, kept: Path | None = None) -> list[FinishedRun]:
    """All completed runs in a folder of results, then those published in the folder `kept`."""
    runs = []
    for file in sorted((results / "sacred").glob("*/*/*/config.json")):
        record = json.loads((file.parent / "run.json").read_text())
        if record["status"] == "COMPLETED":
            runs.append(FinishedRun(file.parent, json.loads(file.read_text())))
    for file in sorted(kept.rglob(f"*{published.SUFFIX}")) if kept is not None else ():
        config, record = published.read_head(file)
        if record["status"] == "COMPLETED":
            runs.append(FinishedRun(file, config))
    return runs


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    start: float = field(default_factory=time.monotonic)


def run_jobs(
    jobs: Sequence[Job], results: Path, processes: int = 0, kept: Path | None = None
) -> list[Path]:
    """Runs all jobs that are not finished yet.

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
    """
    processes = processes or len(os.sched_getaffinity(0))
    there = finished_runs(results, kept)
    todo = [job for job in jobs if job.find(there) is None]
    console.log(
        f"{len(jobs) - len(todo)} of {len(jobs)} runs are there already, {processes} at a time, in "
        f"{results}"
    )
    running: list[_Running] = []
    # As after Ctrl-C: the runs must not go on without the one who started them.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _run_all(todo, running, results, processes)
    finally:
        _end([entry.process for entry in running])
        signal.signal(signal.SIGTERM, before)
    there = finished_runs(results, kept)
    return [_required(job, there, results) for job in jobs]


def _run_all(todo: list[Job], running: list[_Running], results: Path, processes: int) -> None:
    """Starts the jobs one after another; `running` always has those that have not ended."""
    n_jobs = len(todo)
    while todo or running:
        while todo and len(running) < processes:
            running.append(_start(todo.pop(0), results, alone=processes == 1))
        time.sleep(0.1)
        for entry in [entry for entry in running if entry.process.poll() is not None]:
            running.remove(entry)
            _check(entry)
            console.log(
                f"done ({n_jobs - len(todo) - len(running)}/{n_jobs}, "
                f"{time.monotonic() - entry.start:.0f} s): {entry.job}"
            )


def _start(job: Job, results: Path, alone: bool) -> _Running:
    env = None if alone else {**os.environ, "OMP_NUM_THREADS": "1"}
    output = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the run
    process = subprocess.Popen(job.command(results), stdout=output, stderr=output, env=env)
    return _Running(job, process, output)


def _check(entry: _Running) -> None:
    """Raises what a run that has ended says went wrong."""
    code = entry.process.returncode
    if code == 0:
        return
    entry.output.seek(0)
    tail = entry.output.read().decode(errors="replace").strip()[-2000:]
    if code == 2:  # main.py's for what the user must change, in its last line
        raise UserError(f"{tail.splitlines()[-1].removeprefix('error: ')} ({entry.job})")
    raise RunFailure(f"{entry.job} ended with exit code {code}:\n{tail}")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Lets the runs that are still going write their checkpoints."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _required(job: Job, there: Iterable[FinishedRun], results: Path) -> Path:
    found = job.find(there)
    if found is None:
        raise RunFailure(f"{job} left no completed run in {results}")
    return found.path

"""`python src/main.py sweep`: many runs from one yaml file, on this machine, on Slurm or on Ray."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import local, ray_tasks, slurm
from launch.folder import (
    DONE,
    FAILED,
    LOST,
    RUNNING,
    STATES,
    STOPPED,
    WAITING,
    Sweep,
    SweepRun,
    load_sweep,
    plan,
)
from launch.jobs import console
from launch.options import (
    add_launcher_options,
    add_place,
    add_selection,
    check_jobs,
    machine_of,
    results_folder,
    selected,
)
from launch.process import Stopped
from launch.spec import Experiment
from launch.table import counts_in_words, run_table
from utils.errors import UserError
from utils.parsing import Parser

_COMMANDS = ("status", "cancel", "resume")
_LOCK = "launcher.lock"

_EPILOG = """\
sweep status PLACE    how far all runs are
sweep cancel PLACE    end the sweep; its runs write checkpoints
sweep resume PLACE    go on with what is not done, on the same launcher

PLACE is the yaml file, or the folder of the sweep's results. `with KEY=VALUE ...` at the end sets
keys of all runs, as for a single one. The same command goes on where the last one was ended.
docs/guide/sweeps.md has the form of the yaml file.
"""


def _parser(command: str) -> Parser:
    parser = Parser(
        "sweep" if command == "start" else f"sweep {command}",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_place(parser, "sweep")
    if command == "status":
        parser.add_argument("--all", action="store_true", help="a row for every run")
    if command in ("start", "resume"):
        add_launcher_options(parser)
    if command == "start":
        add_selection(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """The command line.

    Returns:
        0; 1 where runs failed; 128 + N after signal N.

    Raises:
        UserError: what is wrong with it.
    """
    command = argv[0] if argv[:1] and argv[0] in _COMMANDS else "start"
    words = list(argv[1:] if command != "start" else argv)
    end = words.index("with") if "with" in words else len(words)
    options = _parser(command).parse_args(words[:end])
    if command == "start":
        return _launch(_planned(options, words[end + 1 :]), options)
    if words[end:]:
        raise UserError(f"sweep {command} takes no settings: they are those of the start")
    sweep = load_sweep(results_folder(options))
    if command == "status":
        return _status(sweep, options.all)
    if command == "cancel":
        return _cancel(sweep)
    return _launch(sweep, options)


def _planned(options: argparse.Namespace, updates: Sequence[str]) -> Sweep:
    """The sweep that a yaml file and the command line describe."""
    experiment = selected(options, updates)
    if experiment.search:
        raise UserError(f"{options.place} is a search: `python src/main.py search` runs it")
    return _sweep_of(experiment, results_folder(options), options.launcher)


def _sweep_of(experiment: Experiment, folder: Path, launcher: str) -> Sweep:
    runs = plan(experiment.jobs(), folder)
    return Sweep(folder, experiment.name, launcher, runs, experiment.resources, experiment.slurm)


# --- Starting ---


def _launch(sweep: Sweep, options: argparse.Namespace) -> int:
    check_jobs(options)
    # Whatever is missing is said before anything is written.
    launch = {"local": _local, "slurm": _slurm, "ray": _ray}[sweep.launcher](sweep, options)
    sweep.save()
    with _one_launcher(sweep):
        sweep.adopt()
        return launch()


def _local(sweep: Sweep, options: argparse.Namespace) -> Any:
    machine = machine_of(options)
    machine.check(sweep.resources)
    return lambda: _attended(lambda: local.run_sweep(sweep, machine, sys.stdout.isatty()), sweep)


def _slurm(sweep: Sweep, options: argparse.Namespace) -> Any:
    slurm.check()
    return lambda: slurm.run_sweep(sweep, options.jobs)


def _ray(sweep: Sweep, options: argparse.Namespace) -> Any:
    ray_tasks.check()
    return lambda: _attended(
        lambda: ray_tasks.run_sweep(sweep, options.address, options.jobs, options.files), sweep
    )


def _attended(work: Any, sweep: Sweep) -> int:
    """Runs a sweep that needs this process; the exit code."""
    try:
        failed: list[SweepRun] = work()
    except Stopped as exc:
        console.print(
            f"{exc}; the same command goes on", markup=False, highlight=False, soft_wrap=True
        )
        return 128 + exc.signum
    if failed:
        sys.stderr.write(f"error: {len(failed)} of {len(sweep.runs)} runs failed\n")
    return 1 if failed else 0


@contextmanager
def _one_launcher(sweep: Sweep) -> Iterator[None]:
    """Holds the sweep's lock, in which `cancel` finds this process.

    Raises:
        UserError: another process has it.
    """
    with open(sweep.folder / _LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UserError(
                f"the sweep in {sweep.folder} is at work: `sweep status` shows it, `sweep cancel` "
                "ends it"
            ) from exc
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
        file.flush()
        yield


# --- Looking and ending ---


def _alive(sweep: Sweep) -> Mapping[str, str] | None:
    """Key -> what the scheduler says of it; None where only locks tell."""
    if sweep.launcher == "slurm":
        return slurm.queued(sweep)
    if sweep.launcher == "ray" and _launcher_pid(sweep) is not None:
        return dict.fromkeys((run.key for run in sweep.runs), RUNNING)
    return None


def states(sweep: Sweep) -> dict[str, str]:
    """Key -> one of `STATES`."""
    alive = _alive(sweep)
    if alive is None:
        return {run.key: run.state() for run in sweep.runs}
    found = {}
    for run in sweep.runs:
        state = run.state(alive=alive.get(run.key) == RUNNING)
        # In the queue it will be taken up again whatever it was before.
        unfinished = state in (STOPPED, LOST, FAILED)
        found[run.key] = WAITING if unfinished and alive.get(run.key) == WAITING else state
    return found


def _status(sweep: Sweep, every: bool) -> int:
    by_key = states(sweep)
    title = f"{sweep.name} ({sweep.launcher}), {counts_in_words(Counter(by_key.values()))}"
    order = {state: i for i, state in enumerate(STATES)}
    rows = sorted(
        (
            (run, by_key[run.key])
            for run in sweep.runs
            if every or by_key[run.key] not in (WAITING, DONE)
        ),
        key=lambda row: order[row[1]],
    )
    shown = rows if every else rows[:50]
    if shown:
        console.print(run_table(shown, title))
    else:
        console.print(title, markup=False, highlight=False)
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more; --all shows every run")
    for run in (run for run, state in shown if state == FAILED):
        console.print(
            f"{run.key}: {run.last_line()}; {run.log}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _cancel(sweep: Sweep) -> int:
    if sweep.launcher == "slurm":
        console.print(f"cancelled {slurm.cancel(sweep)} jobs; `sweep resume` goes on")
        return 0
    pid = _launcher_pid(sweep)
    if pid is None:
        raise UserError(f"the sweep in {sweep.folder} is not at work")
    os.kill(pid, signal.SIGTERM)
    console.print(f"told process {pid} to end; its runs write checkpoints, `sweep resume` goes on")
    return 0


def _launcher_pid(sweep: Sweep) -> int | None:
    """The process that attends to the sweep; None: there is none.

    Raises:
        UserError: it is on another machine.
    """
    try:
        file = open(sweep.folder / _LOCK, "r+")  # noqa: SIM115 - closed right below
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            host, pid = file.read().split()
            if host != socket.gethostname():
                raise UserError(f"the sweep is attended to on {host}: ask there") from exc
            return int(pid)
    return None

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
from typing import Any, NoReturn

from analysis.runs import flatten
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
from launch.process import Stopped
from launch.spec import Experiment, parse_seeds, read
from launch.table import counts_in_words, run_table
from utils.errors import UserError

LAUNCHERS = ("local", "slurm", "ray")
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"sweep: {message}; `python src/main.py sweep --help` lists the options")


def _parser(command: str) -> argparse.ArgumentParser:
    name = "" if command == "start" else f" {command}"
    parser = _Parser(
        prog=f"python src/main.py sweep{name}",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", help="the sweep's yaml file, or the folder of its results")
    parser.add_argument("--results", type=Path, help="folder of the results (results/NAME)")
    if command == "status":
        parser.add_argument("--all", action="store_true", help="a row for every run")
    if command in ("start", "resume"):
        _add_launcher_options(parser)
    if command == "start":
        parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
        parser.add_argument("--only", nargs="+", metavar="METHOD", help="only these methods")
        parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
        parser.add_argument("--seeds", nargs="+", metavar="SEED", help="e.g. 1 2 or 11-20")
    return parser


def _add_launcher_options(parser: argparse.ArgumentParser) -> None:
    text = "at most N runs (Slurm: jobs) at a time; 0: as many as there is room for"
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help=text)
    text = "local: GPUs to use, e.g. 0,1; default: all that are visible"
    parser.add_argument("--gpus", metavar="IDS", help=text)
    text = "local: what this machine has of a named resource"
    parser.add_argument("--have", nargs="+", default=[], metavar="NAME=N", help=text)
    text = "ray: of the cluster (auto: a running one); default: one on this machine"
    parser.add_argument("--address", metavar="ADDRESS", help=text)
    text = "ray: whether the nodes share the folder of the results; auto: look"
    parser.add_argument("--files", choices=("auto", "shared", "copied"), default="auto", help=text)


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
    sweep = load_sweep(_folder(options))
    if command == "status":
        return _status(sweep, options.all)
    if command == "cancel":
        return _cancel(sweep)
    return _launch(sweep, options)


def _folder(options: argparse.Namespace) -> Path:
    if options.results is not None:
        return Path(options.results).absolute()
    place = Path(options.place)
    if place.is_dir():
        return place.absolute()
    return Path("results", read(place).results).absolute()


def _planned(options: argparse.Namespace, updates: Sequence[str]) -> Sweep:
    """The sweep that a yaml file and the command line describe."""
    from sacred.arg_parser import get_config_updates

    experiment = read(Path(options.place))
    if experiment.program:
        raise UserError(f"{options.place} is a program: `python -m experiments run` does it all")
    for update in updates:
        if "=" not in update:
            raise UserError(f"cannot read '{update}': expected key=value")
    asked = dict(flatten(get_config_updates(list(updates))[0]))
    experiment = experiment.select(
        options.only or experiment.usual_methods,
        options.tasks or experiment.usual_tasks,
        parse_seeds(options.seeds, "--seeds") if options.seeds else None,
        asked,
    )
    experiment.check()
    return _sweep_of(experiment, _folder(options), options.launcher)


def _sweep_of(experiment: Experiment, folder: Path, launcher: str) -> Sweep:
    runs = plan(experiment.jobs(), folder)
    return Sweep(folder, experiment.name, launcher, runs, experiment.resources, experiment.slurm)


# --- Starting ---


def _launch(sweep: Sweep, options: argparse.Namespace) -> int:
    if options.jobs < 0:
        raise UserError(f"--jobs must be at least 0, got {options.jobs}")
    # Whatever is missing is said before anything is written.
    launch = {"local": _local, "slurm": _slurm, "ray": _ray}[sweep.launcher](sweep, options)
    sweep.save()
    with _one_launcher(sweep):
        sweep.adopt()
        return launch()


def _local(sweep: Sweep, options: argparse.Namespace) -> Any:
    gpus = None if options.gpus is None else [x for x in options.gpus.split(",") if x]
    machine = local.Machine.here(options.jobs, gpus, _amounts(options.have))
    machine.check(sweep.resources)
    return lambda: _attended(lambda: local.run_sweep(sweep, machine, sys.stdout.isatty()), sweep)


def _slurm(sweep: Sweep, options: argparse.Namespace) -> Any:
    slurm.check(sweep)
    return lambda: slurm.submit(sweep, options.jobs)


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


def _amounts(words: Sequence[str]) -> dict[str, float]:
    amounts = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            amounts[name] = float(number)
        except ValueError as exc:
            raise UserError(f"--have takes NAME=NUMBER, got '{word}'") from exc
    return amounts


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

"""The command line of `search`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import TrialState
from rich import box
from rich.table import Table

from launch import ray_tasks, slurm
from launch.jobs import console
from launch.local import LocalLauncher
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
from launch.search.best import BEST, commands
from launch.search.report import best_first, shown_value, trial_cells, write_report
from launch.search.spec import Search, read_search
from launch.search.study import ASKED, SharedStudy, counted, load_study, summary
from launch.search.work import Launcher, Worker
from utils.errors import RunFailure, UserError
from utils.parsing import Parser

_COMMANDS = ("status", "report")
_SHOWN = 10  # trials that are over in the table of `status`

_EPILOG = """\
search status PLACE    the trials, and the best of them
search report PLACE    pictures and tables, in the folder of the results

PLACE is the yaml file, or the folder of the search's results. `with KEY=VALUE ...` at the end sets
keys of all runs, as for a single one. The same command goes on where the last one was ended; given
several times at once, it works on the same search with several processes.
docs/guide/search.md has the form of the yaml file.
"""
_ABOUT = "Looks for good settings with Optuna, on this machine, on Slurm or on Ray."


def main(argv: Sequence[str]) -> int:
    """See `launch.search.main`."""
    command = argv[0] if argv[:1] and argv[0] in _COMMANDS else "start"
    words = list(argv[1:] if command != "start" else argv)
    end = words.index("with") if "with" in words else len(words)
    options = _parser(command).parse_args(words[:end])
    if command == "start":
        return _start(options, words[end + 1 :])
    if words[end:]:
        raise UserError(f"search {command} takes no settings: they are those of the start")
    folder = results_folder(options)
    if command == "status":
        return _status(folder, options.all)
    file = write_report(folder, options.out or folder / "report")
    console.print(f"written: {file}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _parser(command: str) -> Parser:
    parser = Parser(
        "search" if command == "start" else f"search {command}",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_place(parser, "search")
    if command == "status":
        parser.add_argument("--all", action="store_true", help="a row for every trial")
    if command == "report":
        text = "folder of the report (results/NAME/report)"
        parser.add_argument("--out", type=Path, help=text)
    if command == "start":
        add_launcher_options(parser)
        add_selection(parser)
    return parser


# --- Starting ---


def _start(options: argparse.Namespace, updates: Sequence[str]) -> int:
    check_jobs(options)
    search = read_search(selected(options, updates))
    folder = results_folder(options)
    # Whatever is missing is said before anything is written.
    with _launcher(search, folder, options) as launcher:
        study = SharedStudy(search, folder)
        worker = Worker(search, study, launcher, live=console.is_terminal)
        try:
            worker.run()
        except Stopped as exc:
            _say(f"{exc}; the same command goes on")
            return 128 + exc.signum
    return _over(search, study, folder)


@contextmanager
def _launcher(search: Search, folder: Path, options: argparse.Namespace) -> Iterator[Launcher]:
    needs = search.experiment.resources
    if options.launcher == "local":
        yield LocalLauncher(machine_of(options), needs, patience=0)
        return
    if not options.jobs:
        raise UserError(
            f"--launcher {options.launcher} needs --jobs N: how many runs of the search there may "
            "be at a time"
        )
    if options.launcher == "slurm":
        slurm.check()
        yield slurm.SlurmLauncher(options.jobs)
        return
    ray_tasks.check()
    with ray_tasks.ray_launcher(
        folder, needs, options.address, options.jobs, options.files
    ) as launcher:
        yield launcher


def _over(search: Search, study: SharedStudy, folder: Path) -> int:
    trials = study.study.get_trials(deepcopy=False)
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        raise RunFailure(f"no trial was completed: {summary(trials)}")
    best = study.best()
    _say(f"{summary(trials)}; best: trial {best.number}, {best.value:.6g}")
    _say(f"report: {write_report(folder, folder / 'report')}")
    _say(f"best settings: {folder / BEST}; train with them:")
    for line in commands(search, folder / BEST):
        _say(f"  {line}")
    return 0


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# --- Looking ---


def _status(folder: Path, every: bool) -> int:
    study = load_study(folder)
    trials = counted(study.get_trials(deepcopy=False))
    maximize = study.user_attrs[ASKED]["goal"] == "maximize"
    states = summary(study.get_trials(deepcopy=False))
    table = Table(title=f"{folder.name}: {states}", title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("trial", "state", "evaluations", "value"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    shown = trials if every else best_first(trials, maximize)[:_SHOWN]
    if not every:
        shown = [*(one for one in trials if not one.state.is_finished()), *shown]
    for trial in shown:
        chosen = (f"{key}={shown_value(trial, key)}" for key in trial.params)
        table.add_row(*trial_cells(trial), ", ".join(chosen))
    console.print(table)
    for trial in trials:
        if "error" in trial.user_attrs:
            _say(f"trial {trial.number} failed: {trial.user_attrs['error']}")
    return 0

"""The options that say where runs start, for every command that starts many."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.runs import flatten
from launch.local import Machine
from launch.spec import Experiment, parse_seeds, read
from utils.errors import UserError
from utils.parsing import Parser

LAUNCHERS = ("local", "slurm", "ray")


def add_place(parser: Parser, what: str) -> None:
    """The yaml file or the folder of the results."""
    parser.add_argument("place", help=f"the {what}'s yaml file, or the folder of its results")
    parser.add_argument("--results", type=Path, help="folder of the results (results/NAME)")


def add_selection(parser: Parser) -> None:
    """What of the yaml file is run, and the launcher."""
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="only these methods")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", help="e.g. 1 2 or 11-20")


def add_launcher_options(parser: Parser) -> None:
    """What a launcher may use."""
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


def results_folder(options: argparse.Namespace) -> Path:
    """Where the results of the yaml file are; `place` may be that folder itself."""
    if options.results is not None:
        return Path(options.results).absolute()
    place = Path(options.place)
    if place.is_dir():
        return place.absolute()
    return Path("results", read(place).results).absolute()


def selected(options: argparse.Namespace, updates: Sequence[str]) -> Experiment:
    """What the yaml file and the command line describe.

    Args:
        updates: settings of all runs, `key=value`.

    Raises:
        UserError: what is wrong with them.
    """
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
    return experiment


def check_jobs(options: argparse.Namespace) -> None:
    """
    Raises:
        UserError: `--jobs` is negative.
    """
    if options.jobs < 0:
        raise UserError(f"--jobs must be at least 0, got {options.jobs}")


def machine_of(options: argparse.Namespace) -> Machine:
    """What of this machine may be used.

    Raises:
        UserError: `--have` cannot be read.
    """
    gpus = None if options.gpus is None else [x for x in options.gpus.split(",") if x]
    return Machine.here(options.jobs, gpus, _amounts(options.have))


def _amounts(words: Sequence[str]) -> dict[str, float]:
    amounts = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            amounts[name] = float(number)
        except ValueError as exc:
            raise UserError(f"--have takes NAME=NUMBER, got '{word}'") from exc
    return amounts

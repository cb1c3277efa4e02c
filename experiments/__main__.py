"""`python -m experiments`: runs, draws and publishes experiments that are described in yaml."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from analysis.runs import flatten
from experiments.comparison import publish, report
from experiments.spec import Experiment, load, names
from launch.jobs import console, finished_runs
from launch.local import run_jobs
from launch.spec import parse_seeds
from utils.errors import ConfigError, RunFailure, UserError, report_error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments",
        description=__doc__,
        epilog="`with KEY=VALUE ...` at the end sets keys of all runs, as in `src/main.py`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("list", help="list all experiments and how many of their runs are finished")
    for name, text in (
        ("run", "train the runs that are not finished, then draw all of them"),
        ("report", "draw the runs that are finished"),
        ("publish", "keep the curves of finished runs in experiments/published"),
    ):
        _add_options(commands.add_parser(name, help=text), name)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("name", help="name of an experiment, or path of a yaml file")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="only these methods")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument(
        "--seeds", nargs="+", metavar="SEED", help="these seeds, for example 1 2 or 11-20"
    )
    parser.add_argument("--t-max", type=int, metavar="STEPS", help="length of every run")
    parser.add_argument(
        "--results", type=Path, help="folder of the runs and pictures; default: results/NAME"
    )
    if command == "run":
        text = "number of runs at a time; 0, the default, means one for each processor"
        parser.add_argument("--jobs", type=int, default=0, metavar="N", help=text)
    if command != "publish":
        parser.add_argument(
            "--published",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="count runs whose curves are published as finished",
        )


def _settings(updates: Sequence[str]) -> dict[str, Any]:
    """`["lr=0.1", "env_args.n=3"]` -> values by dotted key, read as `main.py` reads them."""
    from sacred.arg_parser import get_config_updates

    for update in updates:
        if "=" not in update:
            raise ConfigError(f"cannot read '{update}': expected key=value")
    return dict(flatten(get_config_updates(updates)[0]))


def _selected(
    experiment: Experiment, options: argparse.Namespace, asked: Mapping[str, Any], every: bool
) -> Experiment:
    """The part that the command line names; where it names none, every method and task, or those
    that are not optional.
    """
    seeds = parse_seeds(options.seeds, "--seeds") if options.seeds else None
    own = {} if options.t_max is None else {"t_max": options.t_max}
    methods = options.only or (None if every else experiment.usual_methods)
    tasks = options.tasks or (None if every else experiment.usual_tasks)
    return experiment.select(methods, tasks, seeds, {**own, **asked})


def _run(experiment: Experiment, options: argparse.Namespace) -> None:
    start = time.monotonic()
    results = options.results or experiment.folder
    kept = experiment.kept(options.published)
    if options.jobs < 0:
        raise UserError(f"--jobs must be at least 0, got {options.jobs}")
    experiment.check()
    run_jobs(experiment.jobs(), results, options.jobs, kept)
    _report(experiment, options)
    console.rule(f"done in {time.monotonic() - start:.0f} s")


def _report(experiment: Experiment, options: argparse.Namespace) -> None:
    results = options.results or experiment.folder
    out = report(experiment, results, experiment.kept(options.published))
    console.print(f"pictures and numbers: {out}" if out else "no run is finished yet")


def _publish(experiment: Experiment, options: argparse.Namespace) -> None:
    files = publish(experiment, options.results or experiment.folder, experiment.published)
    for file in files:
        console.print(str(file), soft_wrap=True, markup=False)
    console.print(f"{len(files)} curves are new in {experiment.published}")


def _list() -> None:
    """A line for every experiment."""
    for name in names():
        experiment = load(name)
        jobs = experiment.jobs()
        there = finished_runs(experiment.folder, experiment.kept(True)) if jobs else []
        done = sum(job.find(there) is not None for job in jobs)
        count = f"{done}/{len(jobs)} runs" if jobs else "a program"
        line = f"{name:24}{count:>14}  {experiment.about}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(argv: Sequence[str]) -> None:
    """The command line.

    Raises:
        UserError, RunFailure: what is wrong with it, or with a run.
    """
    if argv[:1] == ["run"] and argv[1:2] and not argv[1].startswith("-"):
        experiment = load(argv[1])
        if experiment.program:
            import_module(f"experiments.{experiment.program}").main(list(argv[2:]))
            return
    end = argv.index("with") if "with" in argv else len(argv)
    options = _parser().parse_args(argv[:end])
    if options.command == "list":
        _list()
        return
    experiment = load(options.name)
    if experiment.program:
        raise UserError(f"{experiment.name} is a program: `python -m experiments run` does it all")
    every = options.command != "run"
    experiment = _selected(experiment, options, _settings(argv[end + 1 :]), every)
    {"run": _run, "report": _report, "publish": _publish}[options.command](experiment, options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Sacred imports it
    try:
        main(sys.argv[1:])
    except (UserError, RunFailure) as exc:
        sys.exit(report_error(exc))

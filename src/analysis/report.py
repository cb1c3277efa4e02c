"""`python src/main.py report PATH...`: learning curves, tables and marl-eval's JSON from any number
of runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import aggregate, marl_eval, plots
from analysis.aggregate import FinalRow, Task
from analysis.bootstrap import DEFAULT, STATISTIC_NAMES, STATISTICS, Method
from analysis.runs import Run, group_runs, load_runs, warn_about_mixtures
from utils.errors import UserError
from utils.registry import nearest

_log = logging.getLogger(__name__)

DEFAULT_METRICS = ("test_return_mean", "test_battle_won_mean")
ALL_MAPS = "All maps"
_STATISTIC_HEADS = {"iqm": "IQM", "mean": "Mean", "median": "Median"}


@dataclass
class Report:
    """What `write_report` made: the files, and the tables by metric (values of rates are shares,
    not percent).
    """

    files: list[Path] = field(default_factory=list)
    tables: dict[str, list[FinalRow]] = field(default_factory=dict)
    rates: set[str] = field(default_factory=set)
    method: Method = DEFAULT


def write_report(
    paths: Iterable[str | Path],
    out: str | Path = "results/report",
    *,
    by: Sequence[str] = ("name",),
    metrics: Sequence[str] | None = None,
    last: int = 5,
    method: Method = DEFAULT,
    seeds: bool | None = None,
    over_maps: bool = False,
    ylim: tuple[float, float] | None = None,
    points: int = 300,
) -> Report:
    """Reads runs and writes figures, tables and the marl-eval export into one folder.

    Args:
        paths: run directories, folders above them, glob patterns.
        out: folder for `curves_METRIC.png` and `.pdf`, `final.csv`, `marl_eval.json` and
            `report.md`, which shows them all together with every warning.
        by: config keys whose values make the groups (curves).
        metrics: scalars to report; None: the test return, and the test win rate where it was
            recorded.
        last: how many last evaluations of a run its final result averages.
        method: statistic over the seeds and its interval.
        seeds: single runs as thin lines; None: for groups of few runs.
        over_maps: adds a panel and rows over all maps, maps being the strata; metrics other than
            rates are normalised per map to the range from the lowest to the highest value recorded.
        ylim: limits of the y axis as drawn (percent for rates).
        points: largest number of steps on the common grid of a curve.

    Raises:
        UserError: no runs, an unknown metric or config key, a folder that cannot be written.
    """
    out = Path(out)
    if last < 1:
        raise UserError(f"the number of last evaluations must be positive, not {last}")
    if points < 2:
        raise UserError(f"a curve needs at least 2 points, not {points}")
    if ylim is not None and not ylim[0] < ylim[1]:
        raise UserError(
            f"the lower limit of the y axis must lie below the upper one, not {ylim[0]:g} and "
            f"{ylim[1]:g}"
        )
    with _collected_warnings() as warnings:
        wanted = list(dict.fromkeys(metrics)) if metrics else list(DEFAULT_METRICS)
        exported = [name for names in marl_eval.METRICS.values() for name in names]
        runs = load_runs(paths, {*wanted, *exported})
        wanted = _recorded(wanted, runs, explicit=bool(metrics))
        groups = group_runs(runs, by)
        warn_about_mixtures(groups)
        report = Report(method=method)
        options = _Options(by, last, method, seeds, over_maps, ylim, points, bool(metrics))
        figures = {metric: _one_metric(groups, metric, options, report) for metric in wanted}
        exchange = marl_eval.export(runs, by, last)
        try:
            out.mkdir(parents=True, exist_ok=True)
            pictures = {}
            for metric, figure in figures.items():
                pictures[metric] = plots.save(figure, out / f"curves_{_file_name(metric)}")
                report.files += pictures[metric]
            report.files.append(_write_csv(out / "final.csv", report))
            if exchange:
                report.files.append(out / "marl_eval.json")
                report.files[-1].write_text(json.dumps(exchange) + "\n", encoding="utf-8")
            report.files.append(out / "report.md")
            text = _markdown(report, runs, pictures, warnings, by, last)
            report.files[-1].write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"the report cannot be written to {out}: {error.strerror or error}"
            ) from error
    return report


@dataclass(frozen=True)
class _Options:
    """The arguments of `write_report` that every metric needs."""

    by: Sequence[str]
    last: int
    method: Method
    seeds: bool | None
    over_maps: bool
    ylim: tuple[float, float] | None
    points: int
    explicit: (
        bool  # the metrics were asked for by name: a map without one of them is worth a warning
    )


def _one_metric(
    groups: Mapping[str, Sequence[Run]], metric: str, options: _Options, report: Report
) -> Figure:
    """The figure of one metric; its table goes into `report`."""
    method, points = options.method, options.points
    having = {
        label: [run for run in group if run.finite(metric) is not None]
        for label, group in groups.items()
    }
    members = [run for group in having.values() for run in group]
    recorded = {run.task for run in members}
    lacking = [run for label, group in groups.items() for run in group if run not in having[label]]
    for run in lacking:
        if run.task in recorded:
            _log.warning("%s has no %s: left out there", run.path, metric)
    for task in aggregate.tasks_of([run for run in lacking if run.task not in recorded]):
        if options.explicit:
            _log.warning("no run on %s has the metric %s: no panel", task[1], metric)
    rate = aggregate.is_rate(metric, members)
    rows = aggregate.final_table(members, metric, by=options.by, last=options.last, method=method)
    tasks = aggregate.tasks_of(members)
    panels: dict[str, list[aggregate.Curve]] = {}
    for task in tasks:
        panels[_title(task, tasks)] = [
            aggregate.curves(here, metric, label=label, method=method, points=points)
            for label, group in having.items()
            if (here := [run for run in group if run.task == task])
        ]
    if options.over_maps and len(tasks) > 1:
        scale = None if rate else aggregate.normalisation(members, metric)
        all_rows = aggregate.aggregate_table(rows, scale=scale, method=method)
        title = ALL_MAPS if rate else f"{ALL_MAPS} (0 to 1 per map)"
        if all_rows:
            panels[title] = [
                aggregate.curves(
                    having[row.label],
                    metric,
                    label=row.label,
                    method=method,
                    points=points,
                    scale=scale,
                )
                for row in all_rows
            ]
        rows += all_rows
    report.tables[metric] = rows
    if rate:
        report.rates.add(metric)
    return plots.draw(
        panels,
        ylabel=plots.in_words(metric, rate),
        method=method,
        seeds=options.seeds,
        percent=rate,
        ylim=options.ylim,
    )


def _recorded(wanted: Sequence[str], runs: Sequence[Run], explicit: bool) -> list[str]:
    """The wanted metrics that at least one run has.

    Raises:
        UserError: an explicitly wanted one is missing, or none is there.
    """
    found = [metric for metric in wanted if any(run.finite(metric) is not None for run in runs)]
    if found and (not explicit or len(found) == len(wanted)):
        return found
    missing = next(metric for metric in wanted if metric not in found)
    known = {name for run in load_runs([run.path for run in runs]) for name in run.metrics}
    raise UserError(f"no run has the metric '{missing}'; {nearest(missing, known)}".rstrip("; "))


def _title(task: Task, tasks: Sequence[Task]) -> str:
    """The map's name, with the environment's where two environments have a map of that name."""
    return task[1] if sum(other[1] == task[1] for other in tasks) == 1 else f"{task[0]}: {task[1]}"


def _file_name(metric: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in metric)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.split(".")[0] == "analysis"

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """The warnings of this package, for the report; they go to the console as well, each once."""
    collector, logger = _Collector(), logging.getLogger("analysis")

    def first_time(record: logging.LogRecord) -> bool:
        return record.getMessage() not in collector.messages

    # Figures and tables read the same runs: what is wrong with one of them is said once.
    modules = [
        logging.getLogger(f"analysis.{name}")
        for name in ("runs", "aggregate", "marl_eval", "report")
    ]
    for module in modules:
        module.addFilter(first_time)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        for module in modules:
            module.removeFilter(first_time)


# --- Tables ---


def _number(value: float, rate: bool = False) -> str:
    """A number for reading: percent with one decimal, else four significant digits."""
    if math.isnan(value):
        return "-"
    if rate:
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _interval(row: FinalRow, rate: bool) -> str:
    return "-" if math.isnan(row.low) else f"{_number(row.low, rate)} to {_number(row.high, rate)}"


def _seed(seed: int | None) -> str:
    return "?" if seed is None else str(seed)


def _steps(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.1f} h"


def _heads(method: Method) -> list[str]:
    """Column heads: the chosen statistic with its interval, and the others."""
    others = [_STATISTIC_HEADS[key] for key in ("iqm", "mean") if key != method.statistic]
    return [
        "Map",
        "Group",
        _STATISTIC_HEADS[method.statistic],
        f"{method.percent} interval",
        *others,
    ]


def _cells(row: FinalRow, method: Method, rate: bool) -> list[str]:
    others = [_number(row.value(key), rate) for key in ("iqm", "mean") if key != method.statistic]
    centre = _number(row.value(method.statistic), rate)
    return [row.task[1], row.label, centre, _interval(row, rate), *others]


def _write_csv(path: Path, report: Report) -> Path:
    """All tables as one CSV, in the metrics' own units (win rates as shares)."""
    head = [
        "metric",
        "environment",
        "map",
        "group",
        "iqm",
        "mean",
        "median",
        "interval_of",
        "confidence",
    ]
    head += [
        "low",
        "high",
        "min",
        "max",
        "n_seeds",
        "seeds",
        "finals",
        "evaluations",
        "steps_min",
        "steps_max",
    ]
    head += ["wall_clock_s", "steps_per_s", "notes"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for metric, rows in report.tables.items():
            for row in rows:
                cells = [
                    metric,
                    *row.task,
                    row.label,
                    row.iqm,
                    row.mean,
                    row.median,
                    report.method.statistic,
                ]
                cells += [
                    report.method.confidence,
                    row.low,
                    row.high,
                    min(row.finals),
                    max(row.finals),
                ]
                cells += [
                    len(row.seeds),
                    " ".join(map(_seed, row.seeds)),
                    " ".join(map(repr, row.finals)),
                ]
                cells += [" ".join(map(str, row.evaluations)), min(row.steps), max(row.steps)]
                cells += [row.wall_clock, row.steps_per_second, "; ".join(row.notes)]
                writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in cells)
    return path


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]


def _markdown(
    report: Report,
    runs: Sequence[Run],
    pictures: Mapping[str, Sequence[Path]],
    warnings: Sequence[str],
    by: Sequence[str],
    last: int,
) -> str:
    method = report.method
    lines = [
        "# Report",
        "",
        f"{len(runs)} runs, grouped by {', '.join(f'`{key}`' for key in by)}.",
        "",
    ]
    for metric, rows in report.tables.items():
        rate = metric in report.rates
        png, pdf = pictures[metric]
        lines += [f"## {plots.in_words(metric, rate)} (`{metric}`)", ""]
        lines += [f"![{metric}]({png.name})", "", f"[PDF]({pdf.name})", ""]
        head = [*_heads(method), "Min", "Max", "Seeds", "Steps", "Wall clock", "Steps/s", "Notes"]
        body = []
        for row in rows:
            names = ", ".join(map(_seed, row.seeds))
            body.append(
                [
                    *_cells(row, method, rate),
                    _number(min(row.finals), rate),
                    _number(max(row.finals), rate),
                    f"{len(row.seeds)}: {names}"
                    if row.task[0] != "all"
                    else f"{len(row.seeds)} runs",
                    _steps(row.steps),
                    _duration(row.wall_clock),
                    _number(row.steps_per_second),
                    "; ".join(row.notes),
                ]
            )
        lines += [*markdown_table(head, body), ""]
    lines += ["## How to read this", ""]
    lines += [
        f"- The final result of a run is the mean of its last {last} evaluations (of all, where it "
        "has fewer).",
        f"- Lines, and what the interval belongs to: the {STATISTIC_NAMES[method.statistic]} over "
        "runs. The "
        "interquartile mean drops the floor(n/4) lowest and highest of n runs: with fewer than 4 "
        "it is the plain mean.",
        f"- Intervals: {method.percent}, percentile bootstrap, {method.resamples} resamples of "
        "whole runs, map by map "
        "where several maps are put together. With few runs (under about 5) they are narrower than "
        "they claim.",
        "- A curve uses, at each step, the runs that reach it; nothing is extrapolated.",
        "- Wall clock and steps/s are means per run. `final.csv` has the same numbers unrounded, "
        "win rates as shares.",
        "- `marl_eval.json`: marl-eval's format; `absolute_metrics` hold the episodes of the last "
        f"{last} evaluations, "
        "not those of a re-evaluated best policy.",
        "",
    ]
    if warnings:
        lines += ["## Warnings", "", *(f"- {message}" for message in warnings), ""]
    lines += ["## Runs", ""]
    body = [[str(run.path), run.name, *run.task, _seed(run.seed), run.status] for run in runs]
    lines += markdown_table(["Folder", "Algorithm", "Environment", "Map", "Seed", "Status"], body)
    return "\n".join(lines) + "\n"


def _print_tables(report: Report, console: Console) -> None:
    short = EngFormatter(sep="")
    for metric, rows in report.tables.items():
        rate = metric in report.rates
        table = Table(
            title=plots.in_words(metric, rate),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for i, head in enumerate(_heads(report.method)):
            table.add_column(
                head, justify="right" if i > 1 else "left", no_wrap=i > 1, overflow="fold"
            )
        table.add_column("Runs", justify="right", no_wrap=True)
        table.add_column("Steps", justify="right", no_wrap=True)
        previous = None
        for row in rows:
            if previous not in (None, row.task):
                table.add_section()
            cells = _cells(row, report.method, rate)
            cells[0] = cells[0] if row.task != previous else ""
            cells[1] += " *" if row.notes else ""
            table.add_row(
                *map(escape, cells), str(len(row.seeds)), short(float(f"{max(row.steps):.3g}"))
            )
            previous = row.task
        console.print(table)
        for row in (row for row in rows if row.notes):
            console.print(
                f"* {row.label} on {row.task[1]}: {'; '.join(row.notes)}",
                markup=False,
                highlight=False,
            )


# --- Command line ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}; `python src/main.py report --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python src/main.py report",
        description="Learning curves (PNG, PDF), tables of final results (Markdown, CSV) and "
        "marl-eval's JSON from "
        "runs of this project or of PyMARL, PyMARL2 and EPyMARL.",
        epilog="examples:  report results/sacred    report 'results/sacred/q*/3m' --by name,lr "
        "--metric loss",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a run, a folder above runs, or a glob pattern"
    )
    parser.add_argument(
        "--by", default="name", metavar="KEYS", help="config keys that make a curve (default: name)"
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAMES",
        help="metrics, comma-separated (default: test_return_mean, and test_battle_won_mean where "
        "recorded)",
    )
    parser.add_argument(
        "--out", default="results/report", help="folder for the report (default: %(default)s)"
    )
    parser.add_argument(
        "--last",
        type=int,
        default=5,
        metavar="N",
        help="evaluations in a final result (default: %(default)s)",
    )
    parser.add_argument(
        "--statistic",
        choices=list(STATISTICS),
        default="iqm",
        help="over runs (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)"
    )
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        choices=["auto", "on", "off"],
        default="auto",
        help=f"single runs as thin lines (auto: in groups of up to {plots.SEEDS_SHOWN_UP_TO})",
    )
    parser.add_argument(
        "--over-maps", action="store_true", help="also aggregate over all maps, stratified by map"
    )
    parser.add_argument(
        "--ylim", type=float, nargs=2, metavar=("LOW", "HIGH"), help="limits of the y axis"
    )
    parser.add_argument(
        "--points",
        type=int,
        default=300,
        help="largest number of steps on a curve's grid (default: %(default)s)",
    )
    return parser


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"report: {option} is empty")
    return names


def main(argv: Sequence[str]) -> int:
    """Writes the report that the arguments ask for and prints its tables.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, no runs, an unknown metric or config key, a folder that cannot
            be written.
    """
    args = _parser().parse_args(argv)
    metrics = (
        [name for text in args.metric for name in _names(text, "--metric")] if args.metric else None
    )
    report = write_report(
        args.paths,
        args.out,
        by=_names(args.by, "--by"),
        metrics=metrics,
        last=args.last,
        method=Method(args.statistic, args.confidence, args.resamples),
        seeds={"auto": None, "on": True, "off": False}[args.seeds],
        over_maps=args.over_maps,
        ylim=tuple(args.ylim) if args.ylim else None,
        points=args.points,
    )
    console = Console()
    _print_tables(report, console)
    for path in report.files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0

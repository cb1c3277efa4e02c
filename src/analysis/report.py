"""`python src/main.py report PATH...`: learning curves, tables and comparisons of groups from any
number of runs, as Markdown and as one HTML file; and marl-eval's JSON.
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

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import contents, html, marl_eval, overview, plots
from analysis.aggregate import FinalRow
from analysis.bootstrap import DEFAULT, STATISTICS, Method
from analysis.document import markdown
from analysis.findings import LEVELS, Findings, Options, find
from analysis.progress import tracked
from analysis.runs import Run, group_runs, load_runs, settings_by_cell, warn_about_mixtures
from utils.errors import UserError
from utils.parsing import Parser
from utils.registry import nearest

_log = logging.getLogger(__name__)

DEFAULT_METRICS = ("test_return_mean", "test_battle_won_mean")
WITHOUT_TESTS = "return_mean"  # of runs that have neither of them


@dataclass
class Report:
    """What `write_report` made: the files, and what was found out by metric (values of rates are
    shares, not percent).
    """

    files: list[Path] = field(default_factory=list)
    found: dict[str, Findings] = field(default_factory=dict)
    method: Method = DEFAULT

    @property
    def tables(self) -> dict[str, list[FinalRow]]:
        """Final results by metric."""
        return {metric: found.rows for metric, found in self.found.items()}


@dataclass(frozen=True)
class Style:
    """How the figures of a report look.

    Attributes:
        formats: of `plots.FORMATS`.
        size: a key of `plots.SIZES`.
        seeds: single runs as thin lines; None: for groups of few runs.
        ylim: limits of the y axis as drawn (percent for rates).
    """

    formats: Sequence[str] = ("png", "pdf")
    size: str = "screen"
    seeds: bool | None = None
    ylim: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for kind in self.formats:
            if kind not in plots.FORMATS:
                known = ", ".join(plots.FORMATS)
                raise UserError(f"there is no figure format '{kind}'; known: {known}")
        if self.size not in plots.SIZES:
            known = ", ".join(plots.SIZES)
            raise UserError(f"there is no figure size '{self.size}'; known: {known}")
        if self.ylim is not None and not self.ylim[0] < self.ylim[1]:
            raise UserError(
                f"the lower limit of the y axis must lie below the upper one, not "
                f"{self.ylim[0]:g} and {self.ylim[1]:g}"
            )


def write_report(
    paths: Iterable[str | Path],
    out: str | Path = "results/report",
    *,
    metrics: Sequence[str] | None = None,
    options: Options | None = None,
    style: Style | None = None,
    with_html: bool = False,
) -> Report:
    """Reads runs and writes figures, tables and the marl-eval export into one folder.

    Args:
        paths: run directories, folders above them, glob patterns.
        out: folder for `curves_METRIC.png` and `.pdf`, the figures that compare groups,
            `final.csv`, `statistics.csv`, `marl_eval.json` and `report.md`, which shows them all
            together with every warning.
        metrics: scalars to report; None: the test return, and the test win rate where it was
            recorded, or else the training return.
        options: what is computed.
        style: how figures look.
        with_html: `report.html`, too: the whole report as one file.

    Raises:
        UserError: no runs, an unknown metric or config key, a folder that cannot be written.
        MissingPackage: the page needs a package that is not installed.
    """
    out = Path(out)
    options, style = options or Options(), style or Style()
    script = html.plotly_script() if with_html else ""
    with _collected_warnings() as warnings:
        wanted = list(dict.fromkeys(metrics)) if metrics else list(DEFAULT_METRICS)
        exported = [name for names in marl_eval.METRICS.values() for name in names]
        paths = list(paths)
        everything = load_runs(paths, {*wanted, *exported})
        if not metrics and not _having(wanted, everything):
            wanted = [WITHOUT_TESTS]
            everything = load_runs(paths, {*wanted, *exported})
        runs = _training_runs(everything)
        wanted = _recorded(wanted, runs, explicit=bool(metrics))
        groups = group_runs(runs, options.by)
        cells = settings_by_cell(groups)
        warn_about_mixtures(groups, cells)
        report = Report(method=options.method)
        for metric in wanted:
            report.found[metric] = find(groups, metric, options, explicit=bool(metrics))
        figures = {
            (metric, kind): figure
            for metric, found in report.found.items()
            for kind, figure in _figures(found, options.method, style).items()
        }
        exchange = marl_eval.export(runs, options.by, options.last)
        try:
            out.mkdir(parents=True, exist_ok=True)
            pictures = {}
            for key, figure in tracked(list(figures.items()), "figures"):
                stem = out / f"{key[1]}_{_file_name(key[0])}"
                pictures[key] = plots.save(figure, stem, style.formats, plots.SIZES[style.size])
                report.files += pictures[key]
            report.files.append(_write_csv(out / "final.csv", report))
            report.files.append(_write_statistics(out / "statistics.csv", report.found))
            if exchange:
                report.files.append(out / "marl_eval.json")
                report.files[-1].write_text(json.dumps(exchange) + "\n", encoding="utf-8")
            document = contents.document(
                contents.Material(
                    *(runs, groups, report.found, options, style.seeds, pictures),
                    costs=overview.costs(groups),
                    settings=overview.compare_settings(cells),
                    films=overview.films(group_runs(everything, options.by)),
                    warnings=warnings,
                    exported=bool(exchange),
                    html=with_html,
                )
            )
            report.files.append(out / "report.md")
            report.files[-1].write_text(markdown(document), encoding="utf-8")
            if with_html:
                report.files.append(out / "report.html")
                report.files[-1].write_text(html.page(document, script), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"the report cannot be written to {out}: {error.strerror or error}"
            ) from error
    return report


def _training_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs without evaluations of finished policies, unless there is nothing else."""
    kept = [run for run in runs if not run.is_evaluation]
    if kept and len(kept) < len(runs):
        _log.warning(
            "%d of %d runs evaluate a checkpoint and train nothing: only their films count",
            *(len(runs) - len(kept), len(runs)),
        )
    return kept or list(runs)


def _recorded(wanted: Sequence[str], runs: Sequence[Run], explicit: bool) -> list[str]:
    """The wanted metrics that at least one run has.

    Raises:
        UserError: an explicitly wanted one is missing, or none is there.
    """
    found = _having(wanted, runs)
    if found and (not explicit or len(found) == len(wanted)):
        return found
    missing = next(metric for metric in wanted if metric not in found)
    known = {name for run in load_runs([run.path for run in runs]) for name in run.metrics}
    raise UserError(f"no run has the metric '{missing}'; {nearest(missing, known)}".rstrip("; "))


def _having(metrics: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Those of the metrics that at least one run has."""
    return [metric for metric in metrics if any(run.finite(metric) is not None for run in runs)]


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
        for name in ("runs", "aggregate", "compare", "findings", "marl_eval", "report")
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


# --- Figures ---


def _figures(found: Findings, method: Method, style: Style) -> dict[str, Figure]:
    """Kind -> figure of a metric."""
    size, rate = plots.SIZES[style.size], found.rate
    name = plots.in_words(found.metric, rate)
    figures = {
        "curves": plots.draw(
            found.panels,
            ylabel=name,
            method=method,
            seeds=style.seeds,
            percent=rate,
            ylim=style.ylim,
            size=size,
        )
    }
    comparison = found.comparison
    if comparison is None:
        return figures
    look = plots.looks(found.labels)
    n = len(comparison.tasks)
    note = f"{method.percent} stratified bootstrap intervals; {n} {'map' if n == 1 else 'maps'}"
    score = name if rate else f"{name}, 0 to 1 on each map"
    figures["aggregates"] = plots.draw_intervals(
        {
            title: {label: comparison.aggregates[label][key] for label in comparison.labels}
            for key, title in contents.AGGREGATES.items()
        },
        xlabel=score,
        note=note,
        look=look,
        percent=rate,
        size=size,
    )
    figures["profiles"] = plots.draw_profiles(
        comparison.profiles, xlabel=score, note=note, look=look, percent=rate, size=size
    )
    if comparison.improvement:
        figures["improvement"] = plots.draw_intervals(
            {
                "Probability of improvement": {
                    f"{x} over {y}": one for (x, y), one in comparison.improvement.items()
                }
            },
            xlabel="P(X is better than Y) (%)",
            note=note,
            percent=True,
            middle=0.5,
            size=size,
        )
        figures["ranks"] = plots.draw_ranks(
            {label: comparison.ranks[label] for label in comparison.ranking},
            note=f"one run of each group; {n} {'map' if n == 1 else 'maps'}",
            size=size,
        )
    return figures


# --- Tables ---


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
                    " ".join("?" if seed is None else str(seed) for seed in row.seeds),
                    " ".join(map(repr, row.finals)),
                ]
                cells += [" ".join(map(str, row.evaluations)), min(row.steps), max(row.steps)]
                cells += [row.wall_clock, row.steps_per_second, "; ".join(row.notes)]
                writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in cells)
    return path


def _write_statistics(path: Path, found: Mapping[str, Findings]) -> Path:
    """Groups compared and sample efficiency as one CSV, one number with its interval a line."""
    head = ["metric", "statistic", "environment", "map", "group", "compared_with", "at"]
    head += ["value", "low", "high"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for metric, one in found.items():
            for line in _statistics(one):
                writer.writerow([metric, *("" if _is_nan(cell) else cell for cell in line)])
    return path


def _is_nan(cell: object) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _statistics(found: Findings) -> Iterator[tuple[object, ...]]:
    everywhere = ("all", "all maps")
    if (comparison := found.comparison) is not None:
        for label, estimates in comparison.aggregates.items():
            for key, one in estimates.items():
                yield (key, *everywhere, label, "", "", *one)
        for label, profile in comparison.profiles.items():
            lines = (profile.thresholds, profile.share, profile.low, profile.high)
            for at, *numbers in zip(*(line.tolist() for line in lines), strict=True):
                yield ("profile", *everywhere, label, "", at, *numbers)
        for (x, y), one in comparison.improvement.items():
            yield ("probability_of_improvement", *everywhere, x, y, "", *one)
        for label, estimate in comparison.mean_ranks.items():
            yield ("mean_rank", *everywhere, label, "", "", *estimate)
        for label, shares in comparison.ranks.items():
            for k, share in enumerate(shares.tolist(), start=1):
                yield ("rank", *everywhere, label, "", k, share, "", "")
    for reach in found.reach:
        yield ("steps_to", *reach.task, reach.label, "", reach.level, *reach.steps)
        yield ("runs_that_reach", *reach.task, reach.label, "", reach.level, reach.reached, "", "")


def _print_tables(report: Report, console: Console) -> None:
    short = EngFormatter(sep="")
    for metric, found in report.found.items():
        rows, rate = found.rows, found.rate
        table = Table(
            title=plots.in_words(metric, rate),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for i, head in enumerate(contents.heads(report.method)):
            table.add_column(
                head, justify="right" if i > 1 else "left", no_wrap=i > 1, overflow="fold"
            )
        table.add_column("Runs", justify="right", no_wrap=True)
        table.add_column("Steps", justify="right", no_wrap=True)
        previous = None
        for row in rows:
            if previous not in (None, row.task):
                table.add_section()
            cells = contents.cells(row, report.method, rate)
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "report",
        description="Learning curves, final results with intervals, groups compared over maps, "
        "sample efficiency, cost and settings of runs of this project or of PyMARL, PyMARL2 and "
        "EPyMARL: figures, Markdown, CSV, marl-eval's JSON, and one HTML file to send around.",
        epilog="examples:  report results/sacred --html    report 'results/sacred/q*/3m' --by "
        "name,lr --metric loss    report results/sacred --format pdf --size column",
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
        "recorded; of runs without both, return_mean)",
    )
    parser.add_argument(
        "--out", default="results/report", help="folder for the report (default: %(default)s)"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="also write report.html, one file with interactive figures that needs no network",
    )
    parser.add_argument(
        "--format",
        default="png,pdf",
        metavar="KINDS",
        help=f"of the figures, comma-separated: {', '.join(plots.FORMATS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        default="screen",
        choices=list(plots.SIZES),
        help="of the figures: column (3.3 in, one of a paper's two columns), text (6.75 in, across "
        "both), slide (12 in, large letters) (default: %(default)s)",
    )
    parser.add_argument(
        "--levels",
        default=",".join(f"{100 * level:g}" for level in LEVELS),
        metavar="PERCENT",
        help="for the steps that groups need: percent of won episodes, or of the range of the "
        "metric on a map (default: %(default)s)",
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


def _levels(text: str) -> list[float]:
    try:
        levels = [float(name) / 100 for name in _names(text, "--levels")]
    except ValueError as error:
        raise UserError(f"report: --levels takes numbers in percent, not '{text}'") from error
    return levels


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
        metrics=metrics,
        options=Options(
            by=_names(args.by, "--by"),
            last=args.last,
            method=Method(args.statistic, args.confidence, args.resamples),
            over_maps=args.over_maps,
            points=args.points,
            levels=_levels(args.levels),
        ),
        style=Style(
            formats=_names(args.format, "--format"),
            size=args.size,
            seeds={"auto": None, "on": True, "off": False}[args.seeds],
            ylim=tuple(args.ylim) if args.ylim else None,
        ),
        with_html=args.html,
    )
    console = Console()
    _print_tables(report, console)
    for path in report.files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0

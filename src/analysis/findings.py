"""What a report finds out about one metric: curves, final results, groups compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from analysis import aggregate
from analysis.aggregate import Curve, FinalRow, Task
from analysis.bootstrap import DEFAULT, Method
from analysis.compare import Comparison, Reach, compare, reach_table
from analysis.progress import tracked
from analysis.runs import Run
from utils.errors import UserError

_log = logging.getLogger(__name__)

ALL_MAPS = "All maps"
LEVELS = (0.5, 0.8)


@dataclass(frozen=True)
class Options:
    """What every metric of a report needs.

    Attributes:
        by: config keys whose values make the groups.
        last: how many last evaluations of a run its final result averages.
        method: statistic over the runs and its interval.
        over_maps: curves and rows over all maps, too.
        points: largest number of steps on the common grid of a curve.
        levels: of the steps that groups need, from 0 to 1.
    """

    by: Sequence[str] = ("name",)
    last: int = 5
    method: Method = DEFAULT
    over_maps: bool = False
    points: int = 300
    levels: Sequence[float] = LEVELS

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"the number of last evaluations must be positive, not {self.last}")
        if self.points < 2:
            raise UserError(f"a curve needs at least 2 points, not {self.points}")
        for level in self.levels:
            if not 0 < level <= 1:
                raise UserError(f"a level lies above 0 and up to 100 percent, not {100 * level:g}")


@dataclass
class Findings:
    """Of one metric; values of rates are shares, not percent.

    Attributes:
        rate: it is a share of won episodes.
        panels: title -> curves of the groups.
        rows: final results.
        comparison: of the groups over all maps, None where there is nothing to compare.
        reach: steps to each level, empty for metrics of which nobody knows that more is better.
    """

    metric: str
    rate: bool
    panels: dict[str, list[Curve]] = field(default_factory=dict)
    rows: list[FinalRow] = field(default_factory=list)
    comparison: Comparison | None = None
    reach: list[Reach] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Names of the groups."""
        return list(dict.fromkeys(row.label for row in self.rows))


def find(
    groups: Mapping[str, Sequence[Run]], metric: str, options: Options, explicit: bool = False
) -> Findings:
    """Everything about one metric.

    Args:
        explicit: it was asked for by name: a map without it is worth a warning.

    Raises:
        UserError: the tasks of a group share no range of steps, or a metric cannot be normalised
            (with `over_maps`).
    """
    having = {
        label: [run for run in group if run.finite(metric) is not None]
        for label, group in groups.items()
    }
    members = [run for group in having.values() for run in group]
    _warn_about_lacking(groups, having, metric, explicit)
    rate = aggregate.is_rate(metric, members)
    method = options.method
    found = Findings(metric, rate)
    found.rows = aggregate.final_table(
        members, metric, by=options.by, last=options.last, method=method
    )
    tasks = aggregate.tasks_of(members)
    cells: dict[Task, dict[str, list[Run]]] = {task: {} for task in tasks}
    for label, group in having.items():
        for run in group:
            cells[run.task].setdefault(label, []).append(run)
    for task in tracked(tasks, f"curves of {metric}"):
        found.panels[title_of(task, tasks)] = [
            aggregate.curves(here, metric, label=label, method=method, points=options.points)
            for label, here in cells[task].items()
        ]
    if aggregate.higher_is_better(metric):
        _compare(found, having, members, options)
    if options.over_maps and len(tasks) > 1:
        _over_maps(found, having, members, options)
    return found


def _warn_about_lacking(
    groups: Mapping[str, Sequence[Run]],
    having: Mapping[str, Sequence[Run]],
    metric: str,
    explicit: bool,
) -> None:
    recorded = {run.task for group in having.values() for run in group}
    kept = {id(run) for group in having.values() for run in group}
    lacking = [run for group in groups.values() for run in group if id(run) not in kept]
    for run in lacking:
        if run.task in recorded:
            _log.warning("%s has no %s: left out there", run.path, metric)
    for task in aggregate.tasks_of([run for run in lacking if run.task not in recorded]):
        if explicit:
            _log.warning("no run on %s has the metric %s: no panel", task[1], metric)


def _compare(
    found: Findings,
    having: Mapping[str, Sequence[Run]],
    members: Sequence[Run],
    options: Options,
) -> None:
    """Groups against each other, and the steps that they need."""
    scale, rows = None, found.rows
    if not found.rate:
        # Where all values are equal, nothing can be scaled, and nothing compared.
        ranges = aggregate.value_ranges(members, found.metric)
        scale = {task: (low, high) for task, (low, high) in ranges.items() if low < high}
        rows = [row for row in rows if row.task in scale]
        having = {
            label: [run for run in group if run.task in scale] for label, group in having.items()
        }
    if not rows:
        return
    found.comparison = compare(rows, scale=scale, method=options.method)
    found.reach = reach_table(
        *(having, found.metric, options.levels),
        scale=scale,
        last=options.last,
        method=options.method,
    )


def _over_maps(
    found: Findings,
    having: Mapping[str, Sequence[Run]],
    members: Sequence[Run],
    options: Options,
) -> None:
    """A panel and rows over all maps."""
    scale = None if found.rate else aggregate.normalisation(members, found.metric)
    rows = aggregate.aggregate_table(found.rows, scale=scale, method=options.method)
    if rows:
        found.panels[ALL_MAPS if found.rate else f"{ALL_MAPS} (0 to 1 per map)"] = [
            aggregate.curves(
                having[row.label],
                found.metric,
                label=row.label,
                method=options.method,
                points=options.points,
                scale=scale,
            )
            for row in rows
        ]
    found.rows += rows


def title_of(task: Task, tasks: Sequence[Task]) -> str:
    """The map's name, with the environment's where two environments have a map of that name."""
    return task[1] if sum(other[1] == task[1] for other in tasks) == 1 else f"{task[0]}: {task[1]}"

"""Many seeds to one curve or one row of a table, with the estimates of `analysis.bootstrap`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import DEFAULT, STATISTICS, Method, interval, iqm
from analysis.runs import WALL_CLOCK_KEY, Run, Series, group_runs, natural_key
from utils.errors import UserError

_log = logging.getLogger(__name__)

Task = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Curve:
    """A group's runs as one learning curve on a common grid of G steps.

    Attributes:
        label: the group's name.
        t: int64 [G], environment steps, increasing.
        centre: [G], the statistic over the runs that reach `t`.
        low, high: [G], bounds of its bootstrap interval, NaN where a single run is left.
        n: int64 [G], how many runs reach `t`.
        runs: the single runs as recorded (not interpolated).
        n_tasks: how many tasks the runs come from.
        uneven: some runs start later or end earlier than others by more than the distance of two
            evaluations.
    """

    label: str
    t: np.ndarray
    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    runs: list[Series]
    n_tasks: int
    uneven: bool

    @property
    def n_runs(self) -> int:
        return len(self.runs)


def curves(
    group: Sequence[Run],
    metric: str,
    *,
    label: str = "",
    method: Method = DEFAULT,
    points: int = 300,
    scale: Mapping[Task, tuple[float, float]] | None = None,
) -> Curve:
    """The curves of a group's runs, aggregated to one.

    Runs are brought to a common grid by linear interpolation inside the range of each run, never
    beyond it. The grid is the union of their steps, or `points` evenly spaced steps where the union
    is larger. At every step the runs that reach it count, `Curve.n` of them. Evaluations of
    different runs never fall on the same step, so the grid ends with the first of the runs that end
    within one evaluation of the longest. If the runs come from several tasks, tasks are the strata
    of the bootstrap and the grid covers the range that all tasks have.

    Args:
        group: repetitions of one experiment; runs without the metric are left out with a warning.
        metric: a scalar's name, e.g. `test_return_mean`.
        label: the curve's name in legends.
        points: largest number of grid steps.
        scale: task -> (lowest, highest): values are mapped to (value - lowest) / (highest -
            lowest).

    Raises:
        UserError: no run has the metric, or the tasks share no range of steps.
    """
    by_task: dict[Task, list[Series]] = {}
    for run in group:
        series = run.finite(metric)
        if series is None:
            _log.warning("%s has no %s: left out of its curve", run.path, metric)
            continue
        if scale is not None:
            low, high = scale[run.task]
            series = Series(series.t, (series.values - low) / (high - low))
        by_task.setdefault(run.task, []).append(series)
    if not by_task:
        raise UserError(
            f"no run of '{label}' has the metric {metric}"
            if label
            else f"no run has the metric {metric}"
        )
    ranges = [_common_range(members) for members in by_task.values()]
    start, end = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if start > end:
        raise UserError(
            f"the tasks of '{label}' share no range of steps: they cannot be put into one curve"
        )
    everything = [series for members in by_task.values() for series in members]
    grid = np.unique(np.concatenate([series.t for series in everything]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > points:
        grid = np.unique(np.linspace(start, end, points).round().astype(np.int64))

    values = [
        np.stack([np.interp(grid, s.t, s.values, np.nan, np.nan) for s in m])
        for m in by_task.values()
    ]
    alive = np.isfinite(np.concatenate(values))
    # A step that falls between the end of one run and the start of another has no value.
    covered = np.logical_and.reduce([np.isfinite(x).any(axis=0) for x in values])
    shown = np.full((3, len(grid)), np.nan)
    patterns, which = np.unique(alive[:, covered], axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        columns = np.flatnonzero(covered)[which.reshape(-1) == i]
        strata = [x[:, columns] for x in values]
        strata = [x[np.isfinite(x[:, 0])] for x in strata]
        shown[:, columns] = interval(strata, method)
    uneven = any(r[2] for r in ranges)
    n = alive.sum(axis=0)[covered]
    centre, low, high = shown[:, covered]
    return Curve(
        label,
        grid[covered],
        centre,
        low,
        high,
        n,
        everything,
        len(by_task),
        uneven,
    )


def _common_range(members: Sequence[Series]) -> tuple[int, int, bool]:
    """First and last step of the common grid, and whether the runs' ranges differ by more than one
    evaluation.
    """
    spacing = max(float(np.median(np.diff(s.t))) if len(s.t) > 1 else 0.0 for s in members)
    firsts, lasts = np.asarray([s.t[0] for s in members]), np.asarray([s.t[-1] for s in members])
    together_start, together_end = firsts <= firsts.min() + spacing, lasts >= lasts.max() - spacing
    start, end = int(firsts[together_start].max()), int(lasts[together_end].min())
    if start > end:
        start, end = int(firsts.min()), int(lasts.max())
    return start, end, not (together_start.all() and together_end.all())


_RATE = re.compile(r"(^|_)(won|win|wins|solved|success)(_|$)")
_REWARDING = re.compile(r"(^|_)(returns?|rewards?|scores?)(_|$)")


def higher_is_better(metric: str) -> bool:
    """Whether the metric says by its name that runs with higher values are better: returns and
    shares of won episodes. Of a loss or the length of episodes nothing is known.
    """
    return bool(_RATE.search(metric) or _REWARDING.search(metric)) and "std" not in metric


def is_rate(metric: str, runs: Sequence[Run]) -> bool:
    """Whether the metric is a share of won episodes, to be shown in percent: by its name and values
    within 0..1.
    """
    if not _RATE.search(metric):
        return False
    found = [series.values for run in runs if (series := run.metrics.get(metric)) is not None]
    return all(np.nanmin(v, initial=0.0) >= 0 and np.nanmax(v, initial=0.0) <= 1 for v in found)


def normalisation(runs: Sequence[Run], metric: str) -> dict[Task, tuple[float, float]]:
    """Lowest and highest value of the metric per task over all runs, as marl-eval normalises
    returns.

    Raises:
        UserError: a task on which all values are equal.
    """
    scale = value_ranges(runs, metric)
    for task, (low, high) in scale.items():
        if low == high:
            raise UserError(
                f"{metric} is {low:g} throughout on {task[1]}: it cannot be normalised over tasks"
            )
    return scale


def value_ranges(runs: Sequence[Run], metric: str) -> dict[Task, tuple[float, float]]:
    """Lowest and highest finite value of the metric per task, over all runs and steps."""
    ranges: dict[Task, tuple[float, float]] = {}
    for run in runs:
        if (series := run.finite(metric)) is not None:
            low, high = ranges.get(run.task, (math.inf, -math.inf))
            found = float(series.values.min()), float(series.values.max())
            ranges[run.task] = min(low, found[0]), max(high, found[1])
    return ranges


@dataclass(frozen=True)
class FinalRow:
    """Final result of one group on one task (or over several tasks).

    Attributes:
        task: (environment, map).
        label: the group's name.
        iqm, mean, median: of the runs' final values.
        low, high: bootstrap interval of the statistic of `method`, NaN with a single run.
        seeds, finals: of every run, in the same order.
        steps: last environment step of the metric, of every run.
        evaluations: how many evaluations every run's final value averages.
        wall_clock: mean seconds per run, NaN where no run recorded it.
        steps_per_second: mean over runs, NaN where no run recorded it.
        notes: what a reader must know before comparing.
    """

    task: Task
    label: str
    iqm: float
    mean: float
    median: float
    low: float
    high: float
    seeds: list[int | None]
    finals: list[float]
    steps: list[int]
    evaluations: list[int]
    wall_clock: float
    steps_per_second: float
    notes: list[str]

    def value(self, statistic: str) -> float:
        """The value of a statistic by its key in `STATISTICS`."""
        return {"iqm": self.iqm, "mean": self.mean, "median": self.median}[statistic]


def final_table(
    runs: Sequence[Run],
    metric: str,
    *,
    by: Sequence[str] = ("name",),
    last: int = 5,
    method: Method = DEFAULT,
) -> list[FinalRow]:
    """Final results, one row per task and group: each run's mean over its last evaluations, then
    statistics over runs.

    Args:
        last: how many of a run's last evaluations its final value averages.

    Raises:
        UserError: `last` is not positive, or no run has the metric.
    """
    if last < 1:
        raise UserError(f"the number of last evaluations must be positive, not {last}")
    groups = group_runs(runs, by)
    rows = []
    for task in tasks_of(runs):
        for label, group in groups.items():
            members = [run for run in group if run.task == task and run.finite(metric) is not None]
            if members:
                rows.append(_final_row(task, label, members, metric, last, method))
    if not rows:
        raise UserError(f"no run has the metric {metric}")
    return rows


def tasks_of(runs: Sequence[Run]) -> list[Task]:
    """The tasks of the runs in natural order."""
    return sorted(
        {run.task for run in runs}, key=lambda task: (natural_key(task[0]), natural_key(task[1]))
    )


def aggregate_table(
    rows: Sequence[FinalRow],
    *,
    scale: Mapping[Task, tuple[float, float]] | None = None,
    method: Method = DEFAULT,
) -> list[FinalRow]:
    """One row per group over all tasks, tasks being the strata; groups that lack a task are left
    out with a warning.

    Args:
        rows: of `final_table`.
        scale: as in `curves`.
    """
    result = []
    for label, parts in complete_rows(rows).items():
        strata = scaled(parts, scale)
        finals = np.concatenate(strata)
        _, low, high = interval(strata, method)
        iqm_, mean, median = (
            float(STATISTICS[key](finals, axis=0)) for key in ("iqm", "mean", "median")
        )
        result.append(
            FinalRow(
                ("all", "all maps"),
                label,
                iqm_,
                mean,
                median,
                float(low),
                float(high),
                [seed for row in parts for seed in row.seeds],
                finals.tolist(),
                [steps for row in parts for steps in row.steps],
                [count for row in parts for count in row.evaluations],
                math.nan,
                math.nan,
                ["see the single maps' notes"] if any(row.notes for row in parts) else [],
            )
        )
    return result


def complete_rows(rows: Sequence[FinalRow]) -> dict[str, list[FinalRow]]:
    """Label -> its rows, one for each task of `rows` and in the same order for all; groups that
    lack a task are left out with a warning.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    found = {}
    for label in dict.fromkeys(row.label for row in rows):
        members = {row.task: row for row in rows if row.label == label}
        if len(members) == len(tasks):
            found[label] = [members[task] for task in tasks]
            continue
        missing = ", ".join(task[1] for task in tasks if task not in members)
        _log.warning(
            "'%s' has no runs on %s: left out of the aggregate over all maps", label, missing
        )
    return found


def scaled(
    rows: Sequence[FinalRow], scale: Mapping[Task, tuple[float, float]] | None
) -> list[np.ndarray]:
    """The rows' final values, an array for each, with `scale` as in `curves`."""
    found = []
    for row in rows:
        low, high = scale[row.task] if scale is not None else (0.0, 1.0)
        found.append((np.asarray(row.finals) - low) / (high - low))
    return found


def _final_row(
    task: Task, label: str, runs: Sequence[Run], metric: str, last: int, method: Method
) -> FinalRow:
    series = [s for run in runs if (s := run.finite(metric)) is not None]
    finals = np.asarray([s.values[-last:].mean() for s in series])
    evaluations = [min(last, len(s.values)) for s in series]
    _, low, high = interval([finals], method)
    clocks = [(s.t[-1], wall_clock(run)) for run, s in zip(runs, series, strict=True)]
    seconds = [clock for _, clock in clocks if clock is not None]
    speeds = [steps / clock for steps, clock in clocks if clock]
    notes = []
    if _common_range(series)[2]:
        notes.append("runs of different lengths")
    if min(evaluations) < last:
        notes.append(f"only {min(evaluations)} of {last} evaluations")
    statuses = sorted({run.status for run in runs} - {"COMPLETED", "UNKNOWN"})
    notes += [
        f"{sum(run.status == status for run in runs)} {status.lower()}" for status in statuses
    ]
    return FinalRow(
        task,
        label,
        float(iqm(finals)),
        float(finals.mean()),
        float(np.median(finals)),
        float(low),
        float(high),
        [run.seed for run in runs],
        finals.tolist(),
        [int(s.t[-1]) for s in series],
        evaluations,
        float(np.mean(seconds)) if seconds else math.nan,
        float(np.mean(speeds)) if speeds else math.nan,
        notes,
    )


def wall_clock(run: Run) -> float | None:
    """Seconds that the run took, or None where it did not record them."""
    series = run.timing.get(WALL_CLOCK_KEY)
    return float(series.values[-1]) if series is not None and len(series.values) else run.wall_clock

"""Curves of the chosen runs: smoothed, by steps or by hours, single or aggregated over seeds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from analysis import aggregate
from analysis.aggregate import Curve, Task, tasks_of
from analysis.bootstrap import Method
from analysis.dashboard.entry import noted
from analysis.runs import WALL_CLOCK_KEY, Run, Series, group_runs
from utils.errors import UserError

MS_PER_HOUR = 3_600_000
SINGLE_AT_MOST = 100  # curves of single runs in a panel
_CACHED = 200


@dataclass(frozen=True)
class Options:
    """How curves are drawn.

    Attributes:
        aggregated: one curve for each group instead of one for each run.
        by: config keys that make the groups.
        statistic: over the runs of a group, a key of `bootstrap.STATISTICS`.
        smoothing: weight of the past in an exponential moving average, from 0 to below 1.
        hours: the x axis is the time of training, not environment steps.
        log_x, log_y: logarithmic axes.
    """

    aggregated: bool = False
    by: tuple[str, ...] = ("name",)
    statistic: str = "iqm"
    smoothing: float = 0.0
    hours: bool = False
    log_x: bool = False
    log_y: bool = False


class Panel(NamedTuple):
    """The curves of one task.

    Attributes:
        single: label and curve of every run drawn on its own.
        groups: aggregated curves. By hours their `t` is in milliseconds.
    """

    task: Task
    single: list[tuple[str, Series]]
    groups: list[Curve]


def smooth(series: Series, weight: float) -> Series:
    """Exponential moving average without a bias towards zero at the start, as TensorBoard's.

    Args:
        weight: of the past, from 0 (nothing changes) to below 1.
    """
    if weight <= 0 or not len(series.t):
        return series
    count = np.arange(1, len(series.t) + 1)
    averaged = lfilter([1 - weight], [1, -weight], series.values)
    return Series(series.t, averaged / (1 - weight**count))


def by_time(series: Series, run: Run) -> Series | None:
    """The series over milliseconds of training, None where the run has no clock.

    Between the times that the run recorded it is interpolated, beyond the last of them it goes on
    at the mean speed. A run that only has a length (PyMARL's) is spread over it evenly.
    """
    clock = run.timing.get(WALL_CLOCK_KEY)
    if clock is not None and len(clock.t):
        steps, seconds = clock
        if steps[0] > 0:
            steps, seconds = np.append(0, steps), np.append(0.0, seconds)
    elif run.wall_clock:
        end = max(int(s.t[-1]) for s in run.metrics.values())
        steps, seconds = np.asarray([0, max(1, end)]), np.asarray([0.0, run.wall_clock])
    else:
        return None
    moments = np.interp(series.t, steps, seconds)
    beyond = series.t > steps[-1]
    if steps[-1] > 0:
        moments[beyond] = series.t[beyond] * (seconds[-1] / steps[-1])
    ms = np.maximum.accumulate(np.round(1000 * moments).astype(np.int64))
    keep = np.append(np.diff(ms) > 0, True)  # a series' t increases
    return Series(ms[keep], series.values[keep])


def prepared(run: Run, metric: str, options: Options) -> Run | None:
    """The run with nothing but the metric's finite points, on the x axis asked for and smoothed;
    None where it has none.
    """
    series = run.finite(metric)
    if series is not None and options.hours:
        series = by_time(series, run)
    if series is None:
        return None
    return replace(run, metrics={metric: smooth(series, options.smoothing)})


class Curves:
    """Makes panels, and keeps aggregated curves whose runs have no new points: a bootstrap takes
    seconds where runs are many.
    """

    def __init__(self) -> None:
        self._cache: OrderedDict[object, Curve] = OrderedDict()
        self._lock = threading.Lock()  # a second question for the same curve waits for the first

    def panels(
        self, runs: Sequence[Run], metric: str, options: Options
    ) -> tuple[list[Panel], list[str]]:
        """The curves of a metric, a panel for each task.

        Returns:
            The panels, and what the reader must know about them, in sentences.
        """
        notes: list[str] = []
        with noted() as warnings:
            found = [prepared(run, metric, options) for run in runs]
        ready = [run for run in found if run is not None]
        if len(ready) < len(runs):
            missing = f"{len(runs) - len(ready)} of {len(runs)} runs have no {metric}"
            notes.append(f"{missing}{' or no clock' if options.hours else ''} and are left out.")
        notes += [f"{warning}." for warning in dict.fromkeys(warnings)][:3]
        if options.hours and any(WALL_CLOCK_KEY not in run.timing for run in ready):
            notes.append("Runs that recorded no times are spread evenly over their length.")
        panels = []
        for task in tasks_of(ready):
            members = [run for run in ready if run.task == task]
            if options.aggregated:
                panels.append(Panel(task, [], self._groups(members, metric, options, notes)))
            else:
                panels.append(Panel(task, _single(members, metric, notes), []))
        return panels, list(dict.fromkeys(notes))

    def _groups(
        self, runs: Sequence[Run], metric: str, options: Options, notes: list[str]
    ) -> list[Curve]:
        found = []
        try:
            groups = group_runs(runs, options.by)
        except UserError as error:
            notes.append(f"{error}.")
            return []
        for label, group in groups.items():
            try:
                with self._lock:
                    found.append(self._curve(label, group, metric, options))
            except UserError as error:
                notes.append(f"{error}.")
        return found

    def _curve(self, label: str, group: Sequence[Run], metric: str, options: Options) -> Curve:
        contents = tuple(
            (str(run.path), len(s.t), int(s.t[-1]), float(s.values[-1]))
            for run in group
            for s in (run.metrics[metric],)
        )
        how = (options.statistic, options.smoothing, options.hours)
        key = (label, metric, how, contents)
        if key not in self._cache:
            method = Method(options.statistic)
            self._cache[key] = aggregate.curves(group, metric, label=label, method=method)
        self._cache.move_to_end(key)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return self._cache[key]


def _single(runs: Sequence[Run], metric: str, notes: list[str]) -> list[tuple[str, Series]]:
    if len(runs) > SINGLE_AT_MOST:
        notes.append(
            f"The first {SINGLE_AT_MOST} of {len(runs)} runs on {runs[0].task[1]} are drawn; "
            "aggregated curves show all."
        )
    return [(label_of(run), run.metrics[metric]) for run in runs[:SINGLE_AT_MOST]]


def label_of(run: Run) -> str:
    """A single run's name in a legend."""
    return f"{run.name}, seed {run.seed} (run {run.path.name})"

"""How good a trial is: the figure that decides, of all its runs, while they train and at their end.

Runs are compared evaluation by evaluation: evaluation k of a run is the last value that it logged
before environment step (k + 1) * test_interval, so that runs whose episodes have other lengths, and
tasks with other lengths of training, have the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.dashboard.tail import SeriesFile
from analysis.runs import Series
from launch.folder import SweepRun
from utils.errors import UserError
from utils.registry import nearest


class RunFigure:
    """The figure of one run, read as the run writes it.

    Args:
        interval: environment steps from one evaluation to the next.
    """

    def __init__(self, run: SweepRun, metric: str, interval: int) -> None:
        self.run, self.metric, self.interval = run, metric, interval
        self.over = False
        self._file: SeriesFile | None = None

    def refresh(self) -> None:
        """Reads what is new."""
        folder = self.run.results
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        if self._file is None or self._file.tail.path != path:
            self._file = SeriesFile(path, frozenset({self.metric}))
        try:
            self._file.refresh()
        except FileNotFoundError:  # not there yet, or it is just being replaced
            self._file = None

    @property
    def series(self) -> Series | None:
        """The figure so far."""
        return None if self._file is None else self._file.metrics.get(self.metric)

    def evaluations(self) -> dict[int, float]:
        """Evaluation -> value, without a gap from the first one with a number to the last; what
        comes before evaluation 1 does not count, and one that is no number is as the one before.
        """
        if self.series is None:
            return {}
        steps, values = self.series
        numbers = (steps // self.interval).tolist()
        found = {  # the last one of each counts
            number: value
            for number, value in zip(numbers, values.tolist(), strict=True)
            if not math.isnan(value)
        }
        filled: dict[int, float] = {}
        first = min((number for number in found if number > 0), default=math.inf)
        for number in range(1, max(numbers, default=0) + 1):
            if number < first:
                continue
            filled[number] = found[number] if number in found else filled[number - 1]
        return filled

    def final(self, last: int) -> float:
        """The mean of the last values; NaN where one of them is none.

        Raises:
            UserError: the run has no such figure.
        """
        series = self.series
        if series is None:
            known = _recorded(self.run.results)
            raise UserError(
                f"the runs log no '{self.metric}'; {nearest(self.metric, known)}".rstrip("; ")
            )
        return float(np.mean(series.values[-last:]))


def _recorded(folder: Path | None) -> list[str]:
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return []
    everything = SeriesFile(folder / "metrics.jsonl")
    everything.refresh()
    return sorted(everything.metrics)


def mean_by_evaluation(runs: Sequence[RunFigure]) -> dict[int, float]:
    """Evaluation -> mean over the runs that have begun, as far as all of them are; a run that is
    over keeps its last value.
    """
    rows = [(run, run.evaluations()) for run in runs]
    begun = [(run, row) for run, row in rows if row]
    if not begun:
        return {}
    furthest = max(max(row) for _, row in begun)
    reached = min((max(row) for run, row in begun if not run.over), default=furthest)
    return {
        number: float(np.mean([_at(row, number) for _, row in begun]))
        for number in range(1, reached + 1)
        if all(min(row) <= number for _, row in begun)
    }


def _at(row: Mapping[int, float], number: int) -> float:
    return row[number] if number in row else row[max(row)]


def final_value(runs: Sequence[RunFigure], last: int) -> float:
    """The value of a trial: the mean over its runs, each the mean of its last values."""
    return float(np.mean([run.final(last) for run in runs]))

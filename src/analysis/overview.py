"""What runs cost, how their settings differ, and which films they left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.aggregate import Task, tasks_of, wall_clock
from analysis.runs import Run, Values

FILMS = ("evaluation.gif", "evaluation.mp4")


@dataclass(frozen=True)
class Cost:
    """What the runs of a group took on a map.

    Attributes:
        n_runs: how many there are.
        timed: how many of them recorded their time; hours and speed are of these.
        steps: environment steps of all runs together.
        hours: of training of all timed runs together.
        speed: environment steps per second, mean over timed runs; NaN without any.
    """

    task: Task
    label: str
    n_runs: int
    timed: int
    steps: int
    hours: float
    speed: float

    @property
    def hours_per_run(self) -> float:
        """Mean over the timed runs, NaN without any."""
        return self.hours / self.timed if self.timed else math.nan


def costs(groups: Mapping[str, Sequence[Run]]) -> list[Cost]:
    """One entry for each map and group."""
    found = []
    for task in tasks_of([run for group in groups.values() for run in group]):
        for label, group in groups.items():
            members = [run for run in group if run.task == task]
            if not members:
                continue
            steps = [_last_step(run) for run in members]
            clocks = [wall_clock(run) for run in members]
            timed = [(n, clock) for n, clock in zip(steps, clocks, strict=True) if clock]
            speeds = [n / clock for n, clock in timed]
            found.append(
                Cost(
                    task,
                    label,
                    len(members),
                    len(timed),
                    sum(steps),
                    sum(clock for _, clock in timed) / 3600,
                    sum(speeds) / len(speeds) if speeds else math.nan,
                )
            )
    return found


def _last_step(run: Run) -> int:
    series = [*run.metrics.values(), *run.timing.values()]
    return max((int(one.t[-1]) for one in series if len(one.t)), default=0)


@dataclass(frozen=True)
class Settings:
    """The settings of all runs, by dotted key.

    Attributes:
        common: those that are the same everywhere.
        differing: key -> group -> its values on its maps, each once; none where the group lacks
            the key.
    """

    common: dict[str, str]
    differing: dict[str, dict[str, list[str]]]


def compare_settings(cells: Mapping[tuple[str, Task], Values]) -> Settings:
    """Common and different settings.

    Args:
        cells: of `settings_by_cell`.
    """
    groups: dict[str, dict[str, dict[str, None]]] = {}
    keys = sorted({key for values in cells.values() for key in values})
    missing = set()
    for (label, _), values in cells.items():
        mine = groups.setdefault(label, {})
        missing |= {key for key in keys if key not in values}
        for key, found in values.items():
            mine.setdefault(key, {}).update(dict.fromkeys(found))
    common, differing = {}, {}
    for key in keys:
        values_of = {label: list(mine.get(key, ())) for label, mine in groups.items()}
        everything = {value for values in values_of.values() for value in values}
        if len(everything) == 1 and key not in missing:
            common[key] = everything.pop()
        else:
            differing[key] = values_of
    return Settings(common, differing)


def films(groups: Mapping[str, Sequence[Run]]) -> list[tuple[Task, str, Run, Path]]:
    """A film for each map and group that has one, of the first run that does: map, group, run and
    file.
    """
    found = {}
    for label, group in groups.items():
        for run in group:
            if (run.task, label) in found or not run.path.is_dir():
                continue
            file = next((run.path / name for name in FILMS if (run.path / name).is_file()), None)
            if file is not None:
                found[run.task, label] = (run.task, label, run, file)
    order = {task: i for i, task in enumerate(tasks_of([run for _, _, run, _ in found.values()]))}
    return sorted(found.values(), key=lambda entry: order[entry[0]])

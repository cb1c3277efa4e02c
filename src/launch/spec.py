"""An experiment or a sweep as data: which methods play which tasks, with which seeds and settings,
and what a run needs.

`docs/sweeps.md`, `docs/guide/search.md` and `experiments/README.md` describe the form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from analysis.runs import flatten
from launch.jobs import Job
from launch.resources import Resources, read_resources
from utils.config import build_config, convert
from utils.config_files import load_chain
from utils.errors import ConfigError, UserError
from utils.ranges import COUNT, check_ranges
from utils.registry import nearest

_KEYS = {
    "inherits": str,
    "results": str,
    "methods": dict,
    "tasks": dict,
    "seeds": list,
    "settings": dict,
    "grid": dict,
    "times_per_run": dict,
    "resources": dict,
    "slurm": dict,
    "search": dict,
    "metrics": dict,
    "separate": bool,
    "paper": dict,
    "figures": str,
    "program": str,
}
_METHOD_KEYS = {"algorithm": str, "settings": dict, "grid": dict, "optional": bool}
_TASK_KEYS = {
    "environment": str,
    "settings": dict,
    "methods": list,
    "per_method": dict,
    "seeds": list,
    "optional": bool,
}
_PAPER_KEYS = {"source": str, "values": dict}


@dataclass(frozen=True)
class Method:
    """A curve: an algorithm and its settings. An optional one is trained only if it is named.

    Attributes:
        family: the label in the file; the points of a grid are methods of one family.
    """

    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    family: str = ""


@dataclass(frozen=True)
class Task:
    """A panel: an environment, its settings, and the labels of the methods that are trained on it.

    Attributes:
        per_method: method -> settings that it takes on this task alone.
    """

    environment: str
    settings: Mapping[str, Any]
    methods: tuple[str, ...]
    per_method: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Paper:
    """Published results to lay beside ours: method -> task -> value."""

    source: str
    values: Mapping[str, Mapping[str, float]]

    def value(self, method: str, task: str) -> float | None:
        return self.values.get(method, {}).get(task)


@dataclass(frozen=True)
class Experiment:
    """What one yaml file says.

    Attributes:
        name: of the file, without its ending.
        about: the file's first comment line.
        results: folder of the runs below `results/`, and of their curves below `published/`.
        methods, tasks: label -> what it is, in the order of legend and panels.
        settings: of all runs.
        times_per_run: setting -> how often its interval fits into a run of `t_max` steps.
        metrics: scalar -> axis label; the first one decides.
        separate: a picture and a table for every task.
        figures: module of `experiments` whose `draw` makes the pictures and tables instead.
        program: module of `experiments` whose `main` is the whole experiment.
        resources: what every run needs.
        slurm: options of `sbatch` for all jobs (`partition`, `account`, ...).
        search: what `search` looks for, as the file has it (`launch.search.spec`).
        asked: settings from the command line, which count most.
    """

    name: str
    about: str
    results: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    times_per_run: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    separate: bool = False
    paper: Paper | None = None
    figures: str = ""
    program: str = ""
    resources: Resources = field(default_factory=Resources)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    def job(self, task: str, method: str, seed: int) -> Job:
        """One run; what is asked for on the command line counts most, then the method's settings
        on this task, the method's, the task's, those of all.
        """
        panel, curve = self.tasks[task], self.methods[method]
        own = panel.per_method.get(method, {})
        settings = {**self.settings, **panel.settings, **curve.settings, **own, **self.asked}
        if self.times_per_run and "t_max" not in settings:
            raise ConfigError(f"{self.name}: times_per_run needs t_max in the settings")
        for key, times in self.times_per_run.items():
            settings.setdefault(key, max(settings["t_max"] // times, 1))
        return Job(curve.algorithm, panel.environment, {**settings, "seed": seed})

    def cells(self) -> dict[str, dict[str, list[Job]]]:
        """Task -> method -> its runs, one per seed."""
        return {
            title: {
                label: [self.job(title, label, seed) for seed in task.seeds]
                for label in task.methods
            }
            for title, task in self.tasks.items()
        }

    def jobs(self) -> list[Job]:
        """All runs, each once, seed by seed: an experiment that is stopped early has all curves."""
        rows = [jobs for groups in self.cells().values() for jobs in groups.values()]
        in_order = (job for jobs in zip_longest(*rows) for job in jobs if job is not None)
        return list({str(job): job for job in in_order}.values())

    @property
    def usual_methods(self) -> list[str]:
        """Those that are trained if none are named."""
        return [label for label, method in self.methods.items() if not method.optional]

    @property
    def usual_tasks(self) -> list[str]:
        """Those that are run if none are named."""
        return [title for title, task in self.tasks.items() if not task.optional]

    def select(
        self,
        methods: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Experiment:
        """A part of the experiment; None: all of it.

        Args:
            methods: labels; one in the file stands for all points of its grid.
            settings: of every run, before any others.

        Raises:
            UserError: an unknown method or task, or nothing is left.
        """
        families = {method.family for method in self.methods.values()}
        known = [*self.methods, *(families - set(self.methods))]
        _known("method", methods or (), known, f"{self.name} has no")
        _known("task", tasks or (), self.tasks, f"{self.name} has no")
        chosen = {}
        for title in self.tasks if tasks is None else tasks:
            task = self.tasks[title]
            labels = tuple(
                label
                for label in task.methods
                if methods is None or {label, self.methods[label].family} & set(methods)
            )
            if labels:
                own = task.seeds if seeds is None else tuple(seeds)
                chosen[title] = replace(task, methods=labels, seeds=own)
        if not chosen:
            raise UserError(f"{self.name}: none of these methods is trained on these tasks")
        return replace(self, tasks=chosen, asked={**self.asked, **(settings or {})})

    def check(self) -> None:
        """Builds the configuration of one run of every curve.

        Raises:
            ConfigError: an unknown algorithm, environment or key, or an impossible value; the
                message ends with the run.
        """
        for job in (jobs[0] for groups in self.cells().values() for jobs in groups.values()):
            try:
                build_config(job.algorithm, job.environment, job.updates())
            except ConfigError as exc:
                raise ConfigError(f"{exc} ({job})") from exc


def read(path: Path, parents: Path | None = None) -> Experiment:
    """Reads the yaml file of an experiment.

    Args:
        parents: folder of the files that `inherits` names without a path; None: the file's own.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or of the wrong type.
    """
    folder = (path.parent if parents is None else parents).absolute()
    content = _content(path, folder)
    known = {key: content[key] for key in ("separate", "figures", "program") if key in content}
    about, results = _first_comment(path), content.get("results", path.stem)
    empty = Experiment(path.stem, about, results, **known)
    return empty if empty.program else _filled(empty, content, f"{path}: ")


def parse_seeds(parts: Iterable[Any], where: str) -> tuple[int, ...]:
    """Seeds from numbers and ranges: `[1, "11-13"]` -> (1, 11, 12, 13).

    Raises:
        ConfigError: a part is neither, or there is none.
    """
    seeds: list[int] = []
    for part in parts:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part))
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ConfigError(f"{where} are numbers and ranges such as 11-20, got '{part}'")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    if not seeds:
        raise ConfigError(f"{where} must not be empty")
    return tuple(dict.fromkeys(seeds))


def checked(content: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """The mapping with every value as the type of its key.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type; the message begins with `where`.
    """
    _known("key", content, kinds, f"{where}unknown")
    return {key: convert(key, value, kinds[key], where) for key, value in content.items()}


# --- Reading ---


def _filled(empty: Experiment, content: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with the methods, tasks and settings of its file."""
    _required(content, ("methods", "tasks", "seeds", "metrics"), where)
    grid = _grid(content.get("grid", {}), f"{where}grid.")
    points = {
        label: _points(label, method, grid, f"{where}methods.{label}.")
        for label, method in content["methods"].items()
    }
    seeds = parse_seeds(content["seeds"], f"{where}seeds")
    tasks = {
        title: _task(task, points, seeds, f"{where}tasks.{title}.")
        for title, task in content["tasks"].items()
    }
    times = _each(content.get("times_per_run", {}), int, f"{where}times_per_run.")
    check_ranges(times, dict.fromkeys(times, COUNT), f"{where}times_per_run.")
    paper = content.get("paper")
    return replace(
        empty,
        methods={label: one for group in points.values() for label, one in group.items()},
        tasks=tasks,
        settings=dict(flatten(content.get("settings", {}))),
        times_per_run=times,
        resources=read_resources(content.get("resources", {}), f"{where}resources."),
        slurm=content.get("slurm", {}),
        search=content.get("search", {}),
        metrics=_each(content["metrics"], str, f"{where}metrics."),
        paper=_paper(paper, points, tasks, f"{where}paper.") if paper is not None else None,
    )


Points = Mapping[str, Mapping[str, Method]]  # label in the file -> label of a curve -> method


def _points(
    label: str, entry: Mapping[str, Any], grid: Mapping[str, list[Any]], where: str
) -> dict[str, Method]:
    """A method of the file at every point of the grid, its own and that of all: label -> method."""
    entry = _settings_of(_required(entry, ("algorithm",), where))
    axes = {**grid, **_grid(entry.pop("grid", {}), f"{where}grid.")}
    points = {}
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        shown = [f"{key.removeprefix('env_args.')}={value}" for key, value in point.items()]
        settings = {**entry["settings"], **point}
        points[", ".join([label, *shown])] = Method(**{**entry, "settings": settings}, family=label)
    return points


def _grid(content: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """Key -> the values that it takes."""
    grid = _each(dict(flatten(content)), list, where)
    for key, values in grid.items():
        if not values:
            raise ConfigError(f"{where}{key} must not be empty")
    return grid


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def _content(path: Path, folder: Path) -> dict[str, Any]:
    """The file's checked content, laid over that of the one it inherits from."""
    content: dict[str, Any] = {}
    # Parents that are given by name are in this folder: an absolute one takes the place of config/.
    for file, own in load_chain(path, str(folder)):
        content = _merged(content, _own_content(own, file))
    return content


def _own_content(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    own = checked(content, _KEYS, f"{path}: ")
    for key, kinds, short in (
        ("methods", _METHOD_KEYS, "algorithm"),
        ("tasks", _TASK_KEYS, "environment"),
    ):
        if key in own:
            own[key] = {
                str(label): _expanded(entry, kinds, short, f"{path}: {key}.{label}.")
                for label, entry in own[key].items()
            }
    return own


def _expanded(entry: Any, kinds: Mapping[str, type], short: str, where: str) -> dict[str, Any]:
    """`QMIX: qmix` is short for `QMIX: {algorithm: qmix}`."""
    if isinstance(entry, str):
        return {short: entry}
    return checked(convert(where.removesuffix("."), entry, dict), kinds, where)


def _merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        old = parent.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _each(content: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    return {str(key): convert(str(key), value, kind, where) for key, value in content.items()}


def _required(content: Mapping[str, Any], keys: Iterable[str], where: str) -> Mapping[str, Any]:
    for key in keys:
        if not content.get(key):
            raise ConfigError(f"{where}{key} is missing")
    return content


def _known(kind: str, found: Iterable[str], known: Iterable[str], text: str) -> None:
    """Raises an error that begins with `text` for the first of `found` that is not known."""
    known = list(known)
    for name in found:
        if name not in known:
            hint = nearest(str(name), known)
            raise ConfigError(f"{text} {kind} '{name}'; {hint}".rstrip("; "))


def _settings_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "settings": dict(flatten(entry.get("settings", {})))}


def _task(entry: Mapping[str, Any], points: Points, seeds: tuple[int, ...], where: str) -> Task:
    entry = _settings_of(_required(entry, ("environment",), where))
    per_method = _each(entry.pop("per_method", {}), dict, f"{where}per_method.")
    labels = entry.pop("methods", list(points))
    for found in (labels, per_method):
        _known("method", found, points, f"{where.removesuffix('.')}: no")
    if "seeds" in entry:
        seeds = parse_seeds(entry.pop("seeds"), f"{where}seeds")
    return Task(
        methods=tuple(point for label in labels for point in points[label]),
        per_method={
            point: dict(flatten(own))
            for label, own in per_method.items()
            for point in points[label]
        },
        seeds=seeds,
        **entry,
    )


def _paper(
    entry: Mapping[str, Any],
    points: Points,
    tasks: Mapping[str, Task],
    where: str,
) -> Paper:
    entry = _required(checked(entry, _PAPER_KEYS, where), ("source", "values"), where)
    values = _each(entry["values"], dict, f"{where}values.")
    _known("method", values, points, f"{where}values: no")
    for label, row in values.items():
        _known("task", row, tasks, f"{where}values.{label}: no")
        values[label] = _each(row, float, f"{where}values.{label}.")
    return Paper(entry["source"], values)

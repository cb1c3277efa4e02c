"""An experiment as data: which methods play which tasks, with which seeds and settings.

`README.md` beside this file describes the form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from analysis.runs import flatten
from experiments import ROOT
from experiments.jobs import Job
from utils.config import build_config, convert
from utils.config_files import load_chain
from utils.errors import ConfigError, UserError
from utils.ranges import COUNT, check_ranges
from utils.registry import nearest

FOLDER = ROOT / "experiments"
PUBLISHED = FOLDER / "published"

_KEYS = {
    "inherits": str,
    "results": str,
    "methods": dict,
    "tasks": dict,
    "seeds": list,
    "settings": dict,
    "times_per_run": dict,
    "metrics": dict,
    "separate": bool,
    "paper": dict,
    "figures": str,
    "program": str,
}
_METHOD_KEYS = {"algorithm": str, "settings": dict, "optional": bool}
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
    """A curve: an algorithm and its settings. An optional one is trained only if it is named."""

    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


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
        figures: module of this package whose `draw` makes the pictures and tables instead.
        program: module of this package whose `main` is the whole experiment.
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
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its runs write."""
        return ROOT / "results" / self.results

    @property
    def published(self) -> Path:
        """Where its curves are kept."""
        return PUBLISHED / self.results

    def kept(self, count: bool) -> Path | None:
        """The folder of published runs, if they are to count as finished."""
        return self.published if count else None

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
            settings: of every run, before any others.

        Raises:
            UserError: an unknown method or task, or nothing is left.
        """
        _known("method", methods or (), self.methods, f"{self.name} has no")
        _known("task", tasks or (), self.tasks, f"{self.name} has no")
        chosen = {}
        for title in self.tasks if tasks is None else tasks:
            task = self.tasks[title]
            labels = tuple(x for x in task.methods if methods is None or x in methods)
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


def names() -> list[str]:
    """All experiments. Files whose names begin with `_` are only there to be inherited from."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def load(name: str) -> Experiment:
    """Reads an experiment: a name from this folder, or the path of a yaml file.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or of the wrong type.
    """
    path = Path(name) if name.endswith(".yaml") else _file_of(name)
    content, where = _content(path), f"{path}: "
    for key in ("figures", "program"):
        modules = [file.stem for file in FOLDER.glob("*.py")]
        _known("module", [content[key]] if key in content else [], modules, f"{where}{key}: no")
    known = {key: content[key] for key in ("separate", "figures", "program") if key in content}
    about, results = _first_comment(path), content.get("results", path.stem)
    empty = Experiment(path.stem, about, results, **known)
    return empty if empty.program else _filled(empty, content, where)


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


# --- Reading ---


def _filled(empty: Experiment, content: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with the methods, tasks and settings of its file."""
    _required(content, ("methods", "tasks", "seeds", "metrics"), where)
    methods = {
        label: Method(**_settings_of(_required(method, ("algorithm",), f"{where}methods.{label}.")))
        for label, method in content["methods"].items()
    }
    seeds = parse_seeds(content["seeds"], f"{where}seeds")
    tasks = {
        title: _task(task, methods, seeds, f"{where}tasks.{title}.")
        for title, task in content["tasks"].items()
    }
    times = _each(content.get("times_per_run", {}), int, f"{where}times_per_run.")
    check_ranges(times, dict.fromkeys(times, COUNT), f"{where}times_per_run.")
    paper = content.get("paper")
    return replace(
        empty,
        methods=methods,
        tasks=tasks,
        settings=dict(flatten(content.get("settings", {}))),
        times_per_run=times,
        metrics=_each(content["metrics"], str, f"{where}metrics."),
        paper=_paper(paper, methods, tasks, f"{where}paper.") if paper is not None else None,
    )


def _file_of(name: str) -> Path:
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown experiment '{name}'; {nearest(name, names())}")
    return path


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def _content(path: Path) -> dict[str, Any]:
    """The file's checked content, laid over that of the one it inherits from."""
    content: dict[str, Any] = {}
    # Parents that are given by name are in this folder: an absolute one takes the place of config/.
    for file, own in load_chain(path, str(FOLDER)):
        content = _merged(content, _own_content(own, file))
    return content


def _own_content(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    checked = _checked(content, _KEYS, f"{path}: ")
    for key, kinds, short in (
        ("methods", _METHOD_KEYS, "algorithm"),
        ("tasks", _TASK_KEYS, "environment"),
    ):
        if key in checked:
            checked[key] = {
                str(label): _expanded(entry, kinds, short, f"{path}: {key}.{label}.")
                for label, entry in checked[key].items()
            }
    return checked


def _expanded(entry: Any, kinds: Mapping[str, type], short: str, where: str) -> dict[str, Any]:
    """`QMIX: qmix` is short for `QMIX: {algorithm: qmix}`."""
    if isinstance(entry, str):
        return {short: entry}
    return _checked(convert(where.removesuffix("."), entry, dict), kinds, where)


def _merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        old = parent.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value
    return merged


def _checked(content: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """The mapping with every value as the type of its key."""
    _known("key", content, kinds, f"{where}unknown")
    return {key: convert(key, value, kinds[key], where) for key, value in content.items()}


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


def _task(
    entry: Mapping[str, Any], methods: Mapping[str, Method], seeds: tuple[int, ...], where: str
) -> Task:
    entry = _settings_of(_required(entry, ("environment",), where))
    per_method = _each(entry.pop("per_method", {}), dict, f"{where}per_method.")
    labels = entry.pop("methods", list(methods))
    for found in (labels, per_method):
        _known("method", found, methods, f"{where.removesuffix('.')}: no")
    if "seeds" in entry:
        seeds = parse_seeds(entry.pop("seeds"), f"{where}seeds")
    return Task(
        methods=tuple(labels),
        per_method={label: dict(flatten(own)) for label, own in per_method.items()},
        seeds=seeds,
        **entry,
    )


def _paper(
    entry: Mapping[str, Any],
    methods: Mapping[str, Method],
    tasks: Mapping[str, Task],
    where: str,
) -> Paper:
    entry = _required(_checked(entry, _PAPER_KEYS, where), ("source", "values"), where)
    values = _each(entry["values"], dict, f"{where}values.")
    _known("method", values, methods, f"{where}values: no")
    for label, row in values.items():
        _known("task", row, tasks, f"{where}values.{label}: no")
        values[label] = _each(row, float, f"{where}values.{label}.")
    return Paper(entry["source"], values)

"""What a search looks for: the section `search` of a yaml file of `launch.spec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from analysis.runs import is_setting
from launch.jobs import Job
from launch.search.space import Parameter, all_points, corner, read_space
from launch.spec import Experiment, Method, checked
from utils.config import build_config
from utils.errors import ConfigError, UserError
from utils.ranges import COUNT, NOT_NEGATIVE, Range, at_least, check_ranges, one_of

_KEYS = {
    "trials": int,
    "space": dict,
    "goal": str,
    "last": int,
    "sampler": dict,
    "pruner": dict,
    "storage": str,
    "heartbeat": int,
}
_SAMPLER_KEYS = {"kind": str, "seed": int, "startup_trials": int}
_PRUNER_KEYS = {
    "kind": str,
    "startup_trials": int,
    "first_evaluation": int,
    "reduction_factor": int,
}
_RANGES: dict[str, Range] = {
    "trials": COUNT,
    "goal": one_of("maximize", "minimize"),
    "last": COUNT,
    "heartbeat": COUNT,
}
_SAMPLER_RANGES = {
    "kind": one_of("tpe", "random", "grid"),
    "seed": NOT_NEGATIVE,
    "startup_trials": NOT_NEGATIVE,
}
_PRUNER_RANGES = {
    "kind": one_of("median", "hyperband", "none"),
    "startup_trials": NOT_NEGATIVE,
    "first_evaluation": COUNT,
    "reduction_factor": at_least(2),
}


@dataclass(frozen=True)
class Sampler:
    """How settings are chosen.

    Attributes:
        kind: tpe (tree-structured Parzen estimator), random or grid.
        startup_trials: of TPE: so many random trials come first.
    """

    kind: str = "tpe"
    seed: int = 0
    startup_trials: int = 10


@dataclass(frozen=True)
class Pruner:
    """Which trials are ended early.

    Attributes:
        kind: median, hyperband or none.
        startup_trials: of median: so many trials are completed before any is pruned.
        first_evaluation: no trial is pruned before this evaluation (1: the first one).
        reduction_factor: of Hyperband: one of so many trials goes on at each halving.
    """

    kind: str = "none"
    startup_trials: int = 5
    first_evaluation: int = 1
    reduction_factor: int = 3


@dataclass(frozen=True)
class Search:
    """A search as its file and the command line describe it.

    Attributes:
        experiment: one method, and the tasks and seeds with which every trial trains it.
        trials: how many settings are tried.
        metric: the logged figure that decides.
        maximize: whether more of it is better.
        last: how many last evaluations are averaged, as in reports.
        storage: URL of a database; empty: SQLite in the folder of the results.
        heartbeat: seconds between signs of life in the storage.
    """

    experiment: Experiment
    trials: int
    space: tuple[Parameter, ...]
    metric: str
    maximize: bool = True
    last: int = 5
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    storage: str = ""
    heartbeat: int = 20

    def jobs(self, chosen: Mapping[str, Any]) -> list[Job]:
        """The runs of one trial: every task with every seed, seed by seed."""
        asked = {**self.experiment.asked, **chosen}
        return replace(self.experiment, asked=asked).jobs()

    @property
    def method(self) -> Method:
        (method,) = self.experiment.methods.values()
        return method

    @cached_property
    def evaluations(self) -> int:
        """How many there are in the longest run."""
        configs = (config_of(job) for job in self.jobs({}))
        return max(config["t_max"] // config["test_interval"] for config in configs)

    def settings(self) -> dict[str, Any]:
        """The settings that all runs of all tasks share, but for the searched ones and those of
        the tasks.
        """
        tasks = self.experiment.tasks
        own = {"seed"}.union(*(task.settings for task in tasks.values()))
        own = own.union(*(per for task in tasks.values() for per in task.per_method.values()))
        own -= set(self.experiment.asked)
        first, *others = (job.settings for job in self.jobs({}))
        return {
            key: value
            for key, value in first.items()
            if key not in own and all(other.get(key) == value for other in others)
        }

    def identity(self) -> dict[str, Any]:
        """What makes the values of two trials comparable: it must not change in mid-search."""
        return {
            "method": self.method.algorithm,
            "runs": [
                str(replace(job, settings={key: job.settings[key] for key in _decisive(job)}))
                for job in self.jobs({})
            ],
            "metric": self.metric,
            "goal": "maximize" if self.maximize else "minimize",
            "last": self.last,
            "space": {parameter.key: str(parameter) for parameter in self.space},
        }


def _decisive(job: Job) -> list[str]:
    """The settings that make a difference, and the seed."""
    return [key for key in job.settings if key == "seed" or is_setting(key)]


def read_search(experiment: Experiment) -> Search:
    """The search of a file whose method, tasks and seeds have been selected.

    Raises:
        ConfigError: something in it is unknown, of the wrong type or impossible.
        UserError: there is none, or it has several methods.
    """
    name = experiment.name
    if not experiment.search:
        raise UserError(f"{name} has no section 'search': `python src/main.py sweep` runs it")
    labels = dict.fromkeys(label for task in experiment.tasks.values() for label in task.methods)
    if len(labels) > 1:
        raise UserError(
            f"a search is about one method, {name} has {len(labels)}: choose with --only "
            f"({', '.join(labels)})"
        )
    experiment = replace(experiment, methods={one: experiment.methods[one] for one in labels})
    where = f"{name}: search."
    content = checked(_sections(experiment.search), _KEYS, where)
    check_ranges(content, _RANGES, where)
    if "space" not in content:
        raise ConfigError(f"{where}space is missing")
    space = read_space(content["space"], f"{where}space.")
    sampler = Sampler(**_part(content, "sampler", _SAMPLER_KEYS, _SAMPLER_RANGES, where))
    search = Search(
        experiment=experiment,
        trials=_trials(content.get("trials"), sampler, space, where),
        space=space,
        metric=next(iter(experiment.metrics)),
        maximize=content.get("goal", "maximize") == "maximize",
        sampler=sampler,
        pruner=Pruner(**_part(content, "pruner", _PRUNER_KEYS, _PRUNER_RANGES, where)),
        **{key: content[key] for key in ("last", "storage", "heartbeat") if key in content},
    )
    _check_space(search, where)
    return search


def _sections(content: Mapping[str, Any]) -> dict[str, Any]:
    """`sampler: tpe` is short for `sampler: {kind: tpe}`."""
    return {
        key: {"kind": value} if key in ("sampler", "pruner") and isinstance(value, str) else value
        for key, value in content.items()
    }


def _part(
    content: Mapping[str, Any],
    key: str,
    kinds: Mapping[str, type],
    ranges: Mapping[str, Range],
    where: str,
) -> dict[str, Any]:
    entry = dict(content.get(key, {}))
    found = checked(entry, kinds, f"{where}{key}.")
    check_ranges(found, ranges, f"{where}{key}.")
    return found


def _trials(wanted: int | None, sampler: Sampler, space: tuple[Parameter, ...], where: str) -> int:
    if sampler.kind != "grid":
        if wanted is None:
            raise ConfigError(f"{where}trials is missing: how many settings are to be tried")
        return wanted
    n_points = sum(1 for _ in all_points(space))
    if wanted not in (None, n_points):
        raise ConfigError(
            f"{where}trials: the grid has {n_points} points, got {wanted}; leave it out"
        )
    return n_points


def _check_space(search: Search, where: str) -> None:
    """Builds the configuration with both ends of every key.

    Raises:
        ConfigError: a value is impossible whatever the others are.
    """
    for parameter in search.space:
        for value in parameter.ends:
            problems = []
            for high in (False, True):
                chosen = corner(search.space, parameter, value, high)
                if (problem := impossible(search.jobs(chosen)[0])) is None:
                    break
                problems.append(problem)
            else:
                raise ConfigError(f"{where}space.{parameter.key}: {problems[0]}")


def config_of(job: Job) -> dict[str, Any]:
    """The whole configuration of a run, but for its seed.

    Raises:
        ConfigError: there is no such configuration.
    """
    updates = tuple(update for update in job.updates() if not update.startswith("seed="))
    return _config(job.algorithm, job.environment, updates)


@lru_cache(maxsize=256)
def _config(algorithm: str, environment: str, updates: tuple[str, ...]) -> dict[str, Any]:
    return build_config(algorithm, environment, updates)


def impossible(job: Job) -> str | None:
    """Why there is no such configuration; None: there is."""
    try:
        config_of(job)
    except ConfigError as exc:
        return str(exc)
    return None

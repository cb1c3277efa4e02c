"""Reads run directories: ours (`metrics.jsonl`), those of PyMARL, PyMARL2 and EPyMARL (Sacred's
`info.json`), and published runs, which are one file each (`analysis.published`).
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis import published
from analysis.published import Points
from utils.errors import UserError
from utils.registry import nearest

_log = logging.getLogger(__name__)

# Files that make a folder a run. Sacred writes run.json as soon as a run starts: a run that died at
# once is seen too.
_RUN_FILES = ("metrics.jsonl", "info.json", "run.json")

LAST_STEP = int(np.iinfo(np.int64).max)

# Key in timing.jsonl: seconds since the start, interruptions not counted.
WALL_CLOCK_KEY = "seconds"

# Settings that may differ between the runs of one group without making them different experiments.
_NOT_SETTINGS = re.compile(
    r"(^|\.)seed$|^(repeat_id|label|unique_token|checkpoint_path|resume|load_step|local_results_path|results_path"
    r"|save_model|save_model_interval|keep_checkpoints|checkpoint_buffer|save_replay|render|evaluate|use_cuda|device"
    r"|use_tensorboard|loggers|(observers|logger_args)(\..*)?|acting_threads|learner_threads|env_timeout|max_env_restarts"
    r"|(runner_|learner_)?log_interval)$"
)


class Series(NamedTuple):
    """One scalar over time: `t` int64 [n], environment steps, strictly increasing; `values` float64
    [n], may be NaN.
    """

    t: np.ndarray
    values: np.ndarray


class Episodes(NamedTuple):
    """One list per evaluation: `t` int64 [n], strictly increasing; `values` n lists with one entry
    per episode.
    """

    t: np.ndarray
    values: list[list[float]]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run.

    Attributes:
        path: its directory, or the file of a published run.
        config: the merged configuration that Sacred stored.
        status: Sacred's status: COMPLETED, RUNNING, INTERRUPTED, FAILED, ... or UNKNOWN.
        metrics: scalars by name.
        episodes: figures of single evaluation episodes by name (`test_returns`, `test_wins`).
        timing: wall-clock figures by name, in seconds or steps per second.
        wall_clock: length of the run in seconds where no timing series says it (PyMARL's runs),
            else None.
    """

    path: Path
    config: Mapping[str, Any]
    status: str
    metrics: dict[str, Series]
    episodes: dict[str, Episodes] = field(default_factory=dict)
    timing: dict[str, Series] = field(default_factory=dict)
    wall_clock: float | None = None

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return str(self.config.get("name"))

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None  # files may hold anything

    @property
    def task(self) -> tuple[str, str]:
        """(environment, map). Without `env_args.map_name` the map is `env_args.key` (EPyMARL), else
        the name of the environment's config file.
        """
        env = str(self.config.get("env"))
        given = self.config.get("env_args")
        env_args = given if isinstance(given, Mapping) else {}
        return env, str(
            env_args.get("map_name") or env_args.get("key") or self.config.get("env_config") or env
        )

    def setting(self, key: str) -> Any:
        """The value of a config key; `env_args.penalty` reaches into a mapping.

        Raises:
            KeyError: the run's config has no such key.
        """
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise KeyError(key)
            value = value[part]
        return value

    def settings(self) -> dict[str, Any]:
        """All config values with dotted keys."""
        return dict(flatten(self.config))

    def finite(self, metric: str) -> Series | None:
        """The finite points of a metric, or None where there are none; points left out are warned
        about.
        """
        series = self.metrics.get(metric)
        if series is None:
            return None
        good = np.isfinite(series.values)
        if not good.all():
            counts = (~good).sum(), len(good)
            _log.warning(
                "%s: %d of %d values of %s are not finite: left out", self.path, *counts, metric
            )
        return Series(series.t[good], series.values[good]) if good.any() else None


def load_runs(paths: Iterable[str | Path], keys: Iterable[str] | None = None) -> list[Run]:
    """Reads every run at or below the given places.

    Runs that hold no metrics or cannot be read are left out, each with a warning.

    Args:
        paths: run directories, published runs, folders above them, or glob patterns (`**`
            allowed).
        keys: names of the metrics to read, None for all (the others' lines are not parsed, which is
            many times faster).

    Returns:
        The runs in the natural order of their paths (`2` before `10`), each once.

    Raises:
        UserError: a path that does not exist, a pattern without matches, or no readable run at all.
    """
    names = [str(path) for path in paths]
    keys = None if keys is None else frozenset(keys)
    folders = find_runs(names)
    runs = [run for folder in folders if (run := _tried(folder, keys)) is not None]
    if not runs:
        found = (
            f"{len(folders)} run folder(s) found, none with readable metrics"
            if folders
            else "no run folders found"
        )
        raise UserError(
            f"no runs in {', '.join(names)}: {found}; give folders such as "
            "results/sacred/ALG/MAP/ID"
        )
    return runs


def find_runs(paths: Sequence[str]) -> list[Path]:
    """The run directories and published runs at or below the given paths and glob patterns, each
    once, in natural order.

    Raises:
        UserError: a path that does not exist or a pattern without matches.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        path = os.path.expanduser(path)
        starts = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
        if not starts:
            raise UserError(f"no such file or folder: {path}")
        for run in (run for start in starts for run in _runs_below(start)):
            found.setdefault(run.resolve(), run)
    return sorted(found.values(), key=lambda folder: natural_key(str(folder)))


def _runs_below(start: str) -> Iterator[Path]:
    if start.endswith(published.SUFFIX) and os.path.isfile(start):
        yield Path(start)
    for folder, subfolders, files in os.walk(start):
        if any(name in files for name in _RUN_FILES):
            subfolders.clear()
            yield Path(folder)
        else:
            yield from (Path(folder, name) for name in files if name.endswith(published.SUFFIX))


def group_runs(runs: Iterable[Run], by: Sequence[str] = ("name",)) -> dict[str, list[Run]]:
    """Groups runs that are repetitions of one another, in the natural order of their labels.

    Args:
        by: config keys; dots reach into mappings (`env_args.penalty`).

    Returns:
        Label -> runs. A label is the run's name followed by `key=value` of the other keys (`qmix,
        lr=0.001`); the value is `unset` where a run's config lacks the key.

    Raises:
        UserError: no run's config has the key.
    """
    runs = list(runs)
    for key in by:
        if not any(_has(run, key) for run in runs):
            known = {name for run in runs for name in run.settings()}
            raise UserError(
                f"no run has the config key '{key}'; {nearest(key, known)}".rstrip("; ")
            )
    groups: dict[str, list[Run]] = {}
    for run in runs:
        parts = []
        for key in by:
            value = run.setting(key) if _has(run, key) else "unset"
            parts.append(
                str(value) if key == "name" else f"{key.removeprefix('env_args.')}={value}"
            )
        groups.setdefault(", ".join(parts), []).append(run)
    return dict(sorted(groups.items(), key=lambda item: natural_key(item[0])))


def warn_about_mixtures(groups: Mapping[str, Sequence[Run]]) -> None:
    """Warns where the runs of a curve are not repetitions: different settings, a seed twice,
    unfinished runs.
    """
    for label, group in groups.items():
        for task in sorted({run.task for run in group}):
            members = [run for run in group if run.task == task]
            differing = _differing_settings(members)
            if differing:
                shown = ", ".join(
                    f"{key} ({' / '.join(values)})" for key, values in differing.items()
                )
                _log.warning(
                    "'%s' on %s mixes runs that differ in %s; --by splits them",
                    label,
                    task[1],
                    shown,
                )
            seeds = [run.seed for run in members if run.seed is not None]
            twice = sorted({seed for seed in seeds if seeds.count(seed) > 1}, key=str)
            if twice:
                _log.warning(
                    "'%s' on %s has several runs of seed %s: they count as independent, the "
                    "interval is too narrow",
                    *(label, task[1], ", ".join(map(str, twice))),
                )
    for run in (run for group in groups.values() for run in group):
        if run.status not in ("COMPLETED", "UNKNOWN"):
            _log.warning("%s has status %s: kept, its curve may be short", run.path, run.status)


def is_setting(key: str) -> bool:
    """Whether runs with other values of this key are another experiment."""
    return not _NOT_SETTINGS.search(key)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers in their order: `10_vs_11` after `5m_vs_6m`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def _has(run: Run, key: str) -> bool:
    try:
        run.setting(key)
    except KeyError:
        return False
    return True


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.settings().items():
            if is_setting(key):
                values.setdefault(key, {})[str(value)] = None
    return {key: list(seen) for key, seen in values.items() if len(seen) > 1}


def _tried(folder: Path, keys: frozenset[str] | None) -> Run | None:
    """`_load_run`, for files that may hold anything."""
    try:
        return _load_run(folder, keys)
    except Exception as error:
        _log.warning("%s cannot be read (%s: %s): left out", folder, type(error).__name__, error)
        return None


def _load_run(folder: Path, keys: frozenset[str] | None) -> Run | None:
    """The run in `folder`, or None after a warning."""
    if folder.name.endswith(published.SUFFIX):
        return _load_published(folder, keys)
    config = _read_json(folder / "config.json")
    if config is None:
        _log.warning("%s: no readable config.json: run left out", folder)
        return None
    record = _read_json(folder / "run.json") or {}
    metrics: dict[str, Series] = {}
    episodes: dict[str, Episodes] = {}
    timing: dict[str, Series] = {}
    wall_clock = None
    if (folder / "metrics.jsonl").exists():
        metrics, episodes = _read_jsonl(folder / "metrics.jsonl", keys)
        if (folder / "timing.jsonl").exists():
            timing, _ = _read_jsonl(
                folder / "timing.jsonl", None if keys is None else frozenset({WALL_CLOCK_KEY})
            )
    elif (folder / "info.json").exists() or (folder / "metrics.json").exists():
        scalars, timing = _read_scalars(folder / "metrics.json", keys)
        metrics = {**scalars, **_read_info(folder / "info.json", keys)}
        wall_clock = _sacred_seconds(record)
    if not metrics and not episodes:
        # With a filter the file may hold other metrics; whether the run is empty is then seen from
        # its size.
        if keys is not None and _has_content(folder):
            return Run(folder, config, _status(record), {}, {}, timing, wall_clock)
        _log.warning("%s: no metrics (status %s): run left out", folder, _status(record))
        return None
    return Run(folder, config, _status(record), metrics, episodes, timing, wall_clock)


def _load_published(file: Path, keys: frozenset[str] | None) -> Run | None:
    try:
        config, record = published.read_head(file)
        points, seconds = published.read_series(file)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is no published run (%s): left out", file, error)
        return None
    wanted = {key: series for key, series in points.items() if keys is None or key in keys}
    metrics, episodes = _as_series(file, wanted)
    timing, _ = _as_series(file, seconds)
    return Run(file, config, _status(record), metrics, episodes, timing)


def _status(record: Mapping[str, Any]) -> str:
    return str(record.get("status", "UNKNOWN"))


def _has_content(folder: Path) -> bool:
    files = (folder / name for name in ("metrics.jsonl", "info.json", "metrics.json"))
    return any(file.exists() and file.stat().st_size > len("{}") for file in files)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing (no warning) or broken (warned)."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read: %s", path, error)
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it does not hold a JSON object")
    return content


def _read_jsonl(
    path: Path, keys: frozenset[str] | None
) -> tuple[dict[str, Series], dict[str, Episodes]]:
    """Scalars and lists of a file of `{"t": int, "key": str, "value": float | null | list}`
    lines.
    """
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    if not lines:
        return {}, {}
    last = lines[-1]
    if keys is not None:
        needles = [json.dumps(key).encode() for key in keys]
        lines = [line for line in lines[:-1] if any(needle in line for needle in needles)] + [last]
    points: Points = {}
    broken = add_points(lines, points, keys)
    if len(lines) - 1 in broken:
        _log.warning("%s: the last line is torn: left out", path)
        broken.pop()
    if broken:
        _log.warning("%s: %d broken line(s) inside the file: left out", path, len(broken))
    return _as_series(path, points)


def add_points(
    lines: Sequence[bytes], points: Points, keys: frozenset[str] | None = None
) -> list[int]:
    """Adds the entries of `metrics.jsonl`'s lines to `points`.

    Args:
        points: what was read so far; changed in place.
        keys: the entries wanted, None for all.

    Returns:
        The indices of the lines that are no entries.
    """
    try:
        entries: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(entries) != len(lines):
            raise ValueError("two values on one line")
    except (ValueError, RecursionError):
        entries = [_parse_line(line) for line in lines]
    broken = []
    for i, entry in enumerate(entries):
        try:
            t, key, value = int(entry["t"]), str(entry["key"]), entry["value"]
            if not (value is None or isinstance(value, (int, float, list))):
                raise TypeError
            if abs(t) > LAST_STEP:
                raise OverflowError
        except (TypeError, KeyError, ValueError, OverflowError):
            broken.append(i)
            continue
        if keys is None or key in keys:
            ts, values = points.setdefault(key, ([], []))
            ts.append(t)
            values.append(value)
    return broken


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _as_series(path: Path, points: Points) -> tuple[dict[str, Series], dict[str, Episodes]]:
    metrics, episodes, went_back = as_series(points)
    if went_back:
        _log.warning("%s: steps go back (a resumed run?): the later lines count", path)
    return metrics, episodes


def as_series(points: Points) -> tuple[dict[str, Series], dict[str, Episodes], bool]:
    """Sorts points into scalars and lists. Where steps go back (a resumed run), what was written
    later counts; the third result says whether they do.
    """
    metrics: dict[str, Series] = {}
    episodes: dict[str, Episodes] = {}
    went_back = False
    for key, (ts, values) in points.items():
        t = np.asarray(ts, dtype=np.int64)
        later = np.append(np.minimum.accumulate(t[::-1])[::-1][1:], np.iinfo(np.int64).max)
        went_back |= bool((np.diff(t) < 0).any())
        keep = np.flatnonzero(t < later)
        if any(isinstance(value, list) for value in values):
            lists = [i for i in keep if isinstance(values[i], list)]
            episodes[key] = Episodes(t[lists], [[_number(x) for x in values[i]] for i in lists])
        else:
            numbers = np.asarray([_number(values[i]) for i in keep], dtype=np.float64)
            metrics[key] = Series(t[keep], numbers)
    return metrics, episodes, went_back


def _number(value: Any) -> float:
    """A float from a plain or jsonpickled number; NaN from anything else.

    jsonpickle wraps NumPy scalars as `{"py/object": "numpy.float64", "dtype": ..., "value": 0.5}`.
    They are unwrapped here because `jsonpickle.decode` would run whatever constructor a foreign
    file names.
    """
    if isinstance(value, dict):
        value = value.get("value")
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _read_info(path: Path, keys: frozenset[str] | None) -> dict[str, Series]:
    """Scalars of PyMARL's `info.json`: lists `NAME` and `NAME_T`."""
    info = _read_json(path) or {}
    points: Points = {}
    for key, values in info.items():
        steps = info.get(f"{key}_T")
        if not (isinstance(values, list) and isinstance(steps, list)) or (
            keys is not None and key not in keys
        ):
            continue
        if len(values) != len(steps):
            _log.warning(
                "%s: %s has %d values for %d steps: cut to the shorter",
                path,
                key,
                len(values),
                len(steps),
            )
        pairs = [(_number(t), _number(value)) for t, value in zip(steps, values, strict=False)]
        known = [(int(t), value) for t, value in pairs if np.isfinite(t)]
        if len(known) < len(pairs):
            _log.warning(
                "%s: %s has %d unreadable steps: left out", path, key, len(pairs) - len(known)
            )
        if known:
            points[key] = ([t for t, _ in known], [value for _, value in known])
    return _as_series(path, points)[0]


def _read_scalars(
    path: Path, keys: frozenset[str] | None
) -> tuple[dict[str, Series], dict[str, Series]]:
    """Scalars of Sacred's own `metrics.json`, which EPyMARL writes beside `info.json`, and their
    clock: seconds since the first of them, as a timing series.
    """
    points: Points = {}
    clock: dict[int, float] = {}
    for key, entry in (_read_json(path) or {}).items():
        try:
            steps, values = [int(t) for t in entry["steps"]], list(entry["values"])
            moments = [datetime.fromisoformat(x).timestamp() for x in entry["timestamps"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            _log.warning("%s: %s is no series of Sacred's: left out", path, key)
            continue
        n = min(len(steps), len(values))
        for t, moment in zip(steps, moments, strict=False):
            clock[t] = min(moment, clock.get(t, moment))
        if n and (keys is None or key in keys):
            points[str(key)] = (steps[:n], values[:n])
    metrics = _as_series(path, points)[0]
    if not clock:
        return metrics, {}
    recorded = np.asarray(sorted(clock), dtype=np.int64)
    seconds = np.asarray([clock[step] for step in recorded.tolist()])
    return metrics, {WALL_CLOCK_KEY: Series(recorded, seconds - seconds[0])}


def _sacred_seconds(record: Mapping[str, Any]) -> float | None:
    """Seconds between start and end (or the last heartbeat) of a run in Sacred's run.json."""
    try:
        start = datetime.fromisoformat(record["start_time"])
        return (
            datetime.fromisoformat(record.get("stop_time") or record["heartbeat"]) - start
        ).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None

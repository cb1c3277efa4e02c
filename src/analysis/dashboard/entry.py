"""One run as the table knows it: its small files, and the highlights of its large ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from analysis.dashboard.highlights import Highlights
from analysis.dashboard.tail import Tail, last_lines
from analysis.published import read_head
from analysis.runs import WALL_CLOCK_KEY, Run, load_runs, read_object
from utils.errors import UserError

# Sacred beats every 10 seconds; compiling an environment may hold it up for a minute or two.
DEAD_AFTER = 300.0  # [s] without a sign of life
DEAD = "PROBABLY_DEAD"  # Omniboard's word
_OVER = ("COMPLETED", "FAILED", "INTERRUPTED", "TIMEOUT")
_PEEK = 32 * 1024  # [bytes] at the end of metrics.jsonl: its last evaluation
_PEEK_TIMING = 4 * 1024
_FILES = ("config.json", "run.json", "metrics.jsonl", "timing.jsonl", "info.json", "metrics.json")

Stamp = tuple[int, int, int]  # time of the last change, size, inode


class Entry:
    """A run's place in the index.

    Attributes:
        path: its folder, or the file of a published run.
        id: short, the same at every start.
        config, record: Sacred's `config.json` and `run.json`, empty where they cannot be read.
        highlights: see there; `whole` says whether all of the run went into them.
        speed, seconds: environment steps per second and seconds of training, as last recorded.
        problems: by file, what cannot be read.
        version: of the index when something changed last.
        born: version of the index when the run was found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.id = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        self.config: Mapping[str, Any] = {}
        self.record: Mapping[str, Any] = {}
        self.highlights = Highlights()
        self.whole = False
        self.speed: float | None = None
        self.seconds: float | None = None
        self.problems: dict[str, str] = {}
        self.version = 0
        self.born = 0
        self.status = "UNKNOWN"
        self._published = not path.is_dir()
        self._stamps: dict[str, Stamp | None] = {}
        self._tail = Tail(self.path / "metrics.jsonl")

    # --- Reading ---

    def look(self, now: float) -> bool:
        """Reads what changed of the small files, and what is new in the large ones.

        Args:
            now: seconds since the epoch.

        Returns:
            Whether anything changed.
        """
        changed = {name for name, stamp in self._new_stamps().items() if stamp}
        if self._published:
            if changed:
                self._read_head()
        else:
            self._look_into_folder(changed)
        status = self._status(now)
        if changed or status != self.status:
            self.status = status
            return True
        return False

    def _read_head(self) -> None:
        self.whole = False
        try:
            self.config, self.record = read_head(self.path)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self.problems["file"] = f"it is no published run: {error}"

    def _look_into_folder(self, changed: set[str]) -> None:
        if "config.json" in changed:
            self.config = self._object("config.json")
            if not isinstance(self.config.get("env_args", {}), Mapping):
                self.config = {**self.config, "env_args": {}}
                self.problems["config.json"] = "env_args in config.json is not a mapping"
        if "run.json" in changed:
            self.record = self._object("run.json")
        if "timing.jsonl" in changed:
            self._guarded("timing.jsonl", self._read_clock)
        if "metrics.jsonl" in changed:
            self._guarded("metrics.jsonl", self._read_new if self.whole else self._peek)
        elif {"info.json", "metrics.json"} & changed and not self.has_lines:
            self.whole = False

    def fill(self) -> None:
        """Reads the run as a whole, for the best of its evaluations."""
        self.whole = True
        if self.has_lines:
            self._tail = Tail(self.path / "metrics.jsonl")
            self.highlights = Highlights()
            self._guarded("metrics.jsonl", self._read_new)
            return
        run, problem = self.load(None)
        self.highlights = Highlights()
        self.highlights.add_run(run)
        self.seconds = run.wall_clock
        if WALL_CLOCK_KEY in run.timing:
            self.seconds = float(run.timing[WALL_CLOCK_KEY].values[-1])
        self.problems.pop("metrics", None)
        if problem:
            self.problems["metrics"] = problem

    def load(self, keys: frozenset[str] | None) -> tuple[Run, str]:
        """The run of a folder that is read as a whole (Sacred's, or a published run), and what is
        wrong with it.
        """
        try:
            with noted() as warnings:
                (run,) = load_runs([self.path], keys)
        except (UserError, ValueError, TypeError, AttributeError, OSError) as error:
            text = "; ".join(warnings) or str(error)
            return Run(self.path, self.config, self.status, {}), text
        return run, "; ".join(warnings)

    def _new_stamps(self) -> dict[str, bool]:
        """File -> whether it is not as it was at the last look."""
        found = {}
        for name in ("",) if self._published else _FILES:
            try:
                state = os.stat(self.path / name)
                stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
            except OSError:
                stamp = None
            # A missing file is a change at the first look: its absence may be a problem.
            found[name] = name not in self._stamps or self._stamps[name] != stamp
            self._stamps[name] = stamp
        return found

    def _object(self, name: str) -> dict[str, Any]:
        self.problems.pop(name, None)
        try:
            return read_object(self.path / name)
        except FileNotFoundError:
            self.problems[name] = f"{name} is missing"
        except (OSError, ValueError, RecursionError) as error:
            self.problems[name] = f"{name} cannot be read: {error}"
        return {}

    def _guarded(self, name: str, read: Callable[[], None]) -> None:
        self.problems.pop(name, None)
        if self._stamps.get(name) is None:
            return
        try:
            read()
        except OSError as error:
            self.problems[name] = f"{name} cannot be read: {error.strerror}"

    def _read_new(self) -> None:
        lines, anew = self._tail.read()
        if anew:
            self.highlights = Highlights()
        self.highlights.add(lines)
        self._note_damage()

    def _peek(self) -> None:
        lines, self.whole = last_lines(self.path / "metrics.jsonl", _PEEK)
        if self.whole:
            self._read_new()
        else:
            self.highlights = Highlights()
            self.highlights.add(lines)
            self.highlights.best.clear()
            self._note_damage()

    def _note_damage(self) -> None:
        if self.highlights.broken:
            text = f"metrics.jsonl has {self.highlights.broken} broken line(s)"
            self.problems["metrics.jsonl"] = text
        elif self.highlights.steps is None and (self._stamps["metrics.jsonl"] or (0, 0, 0))[1]:
            self.problems["metrics.jsonl"] = "metrics.jsonl holds no readable line"

    def _read_clock(self) -> None:
        for line in last_lines(self.path / "timing.jsonl", _PEEK_TIMING)[0].splitlines():
            try:
                entry = json.loads(line)
                key, value = entry["key"], float(entry["value"])
            except (ValueError, TypeError, KeyError):
                continue
            if key == "steps_per_second":
                self.speed = value
            elif key == WALL_CLOCK_KEY:
                self.seconds = value

    # --- What the files say ---

    @property
    def has_lines(self) -> bool:
        """Whether the run is one of ours, with `metrics.jsonl`."""
        return self._stamps.get("metrics.jsonl") is not None

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected, unless somebody resumes it."""
        return self.status in _OVER or self._published

    @property
    def started(self) -> datetime | None:
        """When the run began, in UTC."""
        return moment(self.record.get("start_time"))

    @property
    def host(self) -> str:
        host = self.record.get("host")
        return str(host.get("hostname", "")) if isinstance(host, Mapping) else ""

    def bare_run(self) -> Run:
        """The run without its series, for its name, task and settings."""
        return Run(self.path, self.config, self.status, {})

    def elapsed(self) -> float | None:
        """Seconds of the run: as it recorded them, or from Sacred's start to its end."""
        if self.seconds is not None:
            return self.seconds
        start, end = self.started, self._last_sign()
        return (end - start).total_seconds() if start and end else None

    def _last_sign(self) -> datetime | None:
        return moment(self.record.get("stop_time")) or moment(self.record.get("heartbeat"))

    def _status(self, now: float) -> str:
        status = str(self.record.get("status", "UNKNOWN"))
        if status != "RUNNING":
            return status
        sign = self._last_sign() or self.started
        stamp = self._stamps.get("metrics.jsonl")
        last = max(sign.timestamp() if sign else 0.0, stamp[0] / 1e9 if stamp else 0.0)
        return DEAD if now - last > DEAD_AFTER else status


def moment(text: object) -> datetime | None:
    """Sacred's times, which are in UTC and do not say so."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


@contextmanager
def noted() -> Iterator[list[str]]:
    """The warnings of `analysis` in this thread: they belong on the page, not on the console."""
    warnings: list[str] = []
    thread = threading.get_ident()

    def note(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        warnings.append(record.getMessage())
        return False

    loggers = [logging.getLogger(f"analysis.{name}") for name in ("runs", "aggregate")]
    for logger in loggers:
        logger.addFilter(note)
    try:
        yield warnings
    finally:
        for logger in loggers:
            logger.removeFilter(note)

"""All runs below some folders, kept in memory and up to date."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from analysis.dashboard.entry import Entry
from analysis.dashboard.tail import SeriesFile, last_lines, select
from analysis.published import Points
from analysis.runs import (
    WALL_CLOCK_KEY,
    Run,
    add_points,
    as_series,
    find_runs,
    flatten,
    natural_key,
)
from utils.errors import UserError

_log = logging.getLogger(__name__)

INTERVAL = 1.0  # [s] between two looks at the runs that are not over
SCAN_INTERVAL = 5.0  # [s] between two looks for new runs, and at those that are over
_IDLE = 10  # a look takes at most this fraction of the time: a network drive may be slow
_KEPT = 600  # readers of series in memory
_NAMES = 64 * 1024  # [bytes] at the end of metrics.jsonl: the names of all its metrics


class Changes(NamedTuple):
    """What happened since a version of the index."""

    version: int
    changed: list[Entry]
    removed: list[str]


class Index:
    """The runs below `paths`, by id. All methods may be called from any thread.

    Args:
        paths: as in `analysis.runs.find_runs`.
        clock: seconds since the epoch.
    """

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self.paths = list(paths)
        self.version = 0
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._removed: list[tuple[int, str]] = []
        self._readers: OrderedDict[tuple[str, str, frozenset[str] | None], SeriesFile] = (
            OrderedDict()
        )
        self._loaded: OrderedDict[tuple[str, frozenset[str] | None], tuple[int, Run]] = (
            OrderedDict()
        )
        self._keys: tuple[int, list[str]] = (-1, [])

    # --- Keeping up ---

    def scan(self) -> None:
        """Looks for runs that are new or gone, and at all others.

        Raises:
            UserError: a path that does not exist.
        """
        folders = find_runs(self.paths)
        with self._lock:
            known = {entry.path: entry for entry in self._entries.values()}
            found = [path.absolute() for path in folders]
            for path in set(known) - set(found):
                self._forget(known[path])
            for path in found:
                entry = known.get(path) or self._add(path)
                self._look(entry)

    def refresh(self) -> None:
        """Looks at the runs that are not over."""
        with self._lock:
            for entry in self._entries.values():
                if not entry.over:
                    self._look(entry)

    def fill(self, seconds: float) -> bool:
        """Reads runs as a whole, for the figures that need it, as long as the time allows.

        Returns:
            Whether all of them are read.
        """
        end = time.monotonic() + seconds
        for entry in self.entries():
            if entry.whole:
                continue
            if time.monotonic() >= end:
                return False
            with self._lock:
                entry.fill()
                self._touch(entry)
        return True

    def _add(self, path: Path) -> Entry:
        entry = Entry(path)
        entry.born = self.version + 1
        self._entries[entry.id] = entry
        return entry

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.id]
        self.version += 1
        self._removed.append((self.version, entry.id))

    def _look(self, entry: Entry) -> None:
        if entry.look(self._clock()):
            self._touch(entry)

    def _touch(self, entry: Entry) -> None:
        self.version += 1
        entry.version = self.version

    # --- What there is ---

    def entries(self, ids: Iterable[str] | None = None) -> list[Entry]:
        """All runs in the natural order of their paths, or those of the ids that are still there,
        in their order.
        """
        with self._lock:
            if ids is None:
                return sorted(self._entries.values(), key=lambda e: natural_key(str(e.path)))
            return [self._entries[i] for i in ids if i in self._entries]

    def entry(self, run_id: str) -> Entry | None:
        """The run of this id."""
        with self._lock:
            return self._entries.get(run_id)

    def changes(self, since: int) -> Changes:
        """What changed after the version `since`."""
        with self._lock:
            changed = [entry for entry in self._entries.values() if entry.version > since]
            removed = [run_id for version, run_id in self._removed if version > since]
            return Changes(self.version, changed, removed)

    def config_keys(self) -> list[str]:
        """The dotted keys of all configurations, sorted."""
        with self._lock:
            configs = [entry.config for entry in self._entries.values() if entry.config]
            if self._keys[0] != len(configs):
                keys = {key for config in configs for key, _ in flatten(config)}
                self._keys = len(configs), sorted(keys)
            return self._keys[1]

    def metric_names(self, entries: Sequence[Entry]) -> list[str]:
        """The scalars that the runs record, sorted, those of evaluations first.

        Of long files the beginning is not looked at: a metric whose recording stopped early may be
        missing.
        """
        names: set[str] = set()
        for entry in entries:
            if not entry.has_lines:
                names.update(self.run(entry).metrics)
                continue
            points: Points = {}
            try:
                lines, _ = last_lines(entry.path / "metrics.jsonl", _NAMES)
            except OSError:
                continue
            add_points(select(lines, None), points)
            names.update(as_series(points)[0])
        return sorted(names, key=lambda name: (not name.startswith("test_"), name))

    def run(self, entry: Entry, keys: Iterable[str] | None = None) -> Run:
        """The run with its series, as far as it got. Of files that grow only what is new is read.

        Args:
            keys: the metrics wanted, None for all.
        """
        wanted = None if keys is None else frozenset(keys)
        with self._lock:
            if entry.has_lines:
                return self._run_of_lines(entry, wanted)
            cached = self._loaded.get((entry.id, wanted))
            if cached is None or cached[0] != entry.version:
                cached = entry.version, entry.load(wanted)[0]
                _keep(self._loaded, (entry.id, wanted), cached)
            return cached[1]

    def _run_of_lines(self, entry: Entry, keys: frozenset[str] | None) -> Run:
        metrics = self._series(entry, "metrics", keys)
        clock = self._series(entry, "timing", None if keys is None else frozenset({WALL_CLOCK_KEY}))
        return Run(
            entry.path,
            entry.config,
            entry.status,
            metrics.metrics,
            metrics.episodes,
            clock.metrics,
        )

    def _series(self, entry: Entry, name: str, keys: frozenset[str] | None) -> SeriesFile:
        place = (entry.id, name, keys)
        reader = self._readers.get(place) or SeriesFile(entry.path / f"{name}.jsonl", keys)
        _keep(self._readers, place, reader)
        problem = f"{name}.jsonl"
        try:
            reader.refresh()
        except FileNotFoundError:
            pass
        except OSError as error:
            entry.problems[problem] = f"{problem} cannot be read: {error.strerror}"
        if reader.broken:
            entry.problems[problem] = f"{problem} has {reader.broken} broken line(s), left out"
        return reader


def _keep(cache: OrderedDict, place: object, value: object) -> None:
    """Puts a value into a cache of the last `_KEPT` ones."""
    cache[place] = value
    cache.move_to_end(place)
    while len(cache) > _KEPT:
        cache.popitem(last=False)


class Watcher(threading.Thread):
    """Keeps an index up to date, in the background."""

    def __init__(self, index: Index) -> None:
        super().__init__(name="dashboard-watcher", daemon=True)
        self._index = index
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Until `stop` is called."""
        next_scan = time.monotonic() + SCAN_INTERVAL
        while not self._stop_asked.is_set():
            start = time.monotonic()
            full = start >= next_scan
            self._once(full)
            spent = time.monotonic() - start
            if full:
                next_scan = start + max(SCAN_INTERVAL, _IDLE * spent)
            wait = max(INTERVAL, _IDLE * spent)
            end = time.monotonic() + wait
            while not self._index.fill(0.2) and time.monotonic() < end:
                if self._stop_asked.wait(0.02):  # the page's requests come in between
                    return
            self._stop_asked.wait(max(0.0, end - time.monotonic()))

    def _once(self, full: bool) -> None:
        try:
            if full:
                self._index.scan()
            else:
                self._index.refresh()
        except UserError as error:  # a folder was removed: it may come back
            _log.debug("%s", error)
        except Exception:
            _log.exception("the runs cannot be looked at; trying again")

    def stop(self) -> None:
        """Ends the thread, and waits for it."""
        self._stop_asked.set()
        self.join()

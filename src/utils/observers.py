"""Sacred's view of a run: its folder `results/sacred/ALG/MAP/ID`, and databases that may be
away.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import textwrap
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from sacred.observers import FileStorageObserver, MongoObserver, RunObserver
from sacred.serializer import flatten
from sacred.utils import SacredInterrupt

from utils.background import Background
from utils.elsewhere import note, recall
from utils.errors import UserError

_log = logging.getLogger(__name__)

_DUMP_SHARE = 0.01  # of the wall-clock time may go into rewriting info.json during a run
_START_WAIT = 10.0  # [s] that the start of a run waits for a database
_END_WAIT = 15.0  # [s] that the end of a run waits for a database


class Interrupted(SacredInterrupt):
    """A signal ended the run in good order; Sacred records the status INTERRUPTED, the exit code is
    128 + signum.
    """

    STATUS = "INTERRUPTED"

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


class Paused(SacredInterrupt):
    """A run has done the steps that it was asked for and could go on: Sacred's status is that of an
    interrupted one.
    """

    STATUS = "INTERRUPTED"


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes strict JSON (NaN becomes null), so that a reader finds the old or the new file and
    never half of one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(_to_json(content, indent), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _to_json(content: Any, indent: int | None) -> str:
    try:
        return json.dumps(content, allow_nan=False, sort_keys=True, indent=indent)
    except (TypeError, ValueError):  # plug-ins may put anything into Sacred's info
        return json.dumps(_without_nan(flatten(content)), sort_keys=True, indent=indent)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _snapshot(info: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `info` that the training thread may go on appending to; `key` and `key_T` of equal
    length.
    """
    copied = {
        key: list(value) if isinstance(value, list) else value for key, value in list(info.items())
    }
    for key, values in copied.items():
        steps = copied.get(f"{key}_T")
        if isinstance(values, list) and isinstance(steps, list):
            length = min(len(values), len(steps))
            del values[length:], steps[length:]
    return copied


def _size(info: Mapping[str, Any]) -> int:
    return sum(len(value) if isinstance(value, list) else 1 for value in list(info.values()))


class RunFolder(FileStorageObserver):
    """Sacred's files in a folder per run; a resumed run goes on in its old folder.

    `info.json` is rewritten only when the info grew, and so seldom that it takes at most 1% of the
    time; always at the end. A write that fails during the run (e.g. a full disk) is one warning and
    is tried again.

    Args:
        basedir: the folder in which runs have a folder each, named by their number.
        run_dir: the folder of the run to go on with.
    """

    dir: str | None
    run_entry: dict[str, Any]
    info: dict[str, Any]

    def __init__(self, basedir: str | Path, run_dir: str | Path | None = None) -> None:
        super().__init__(
            basedir, priority=1000, copy_sources=False
        )  # asked first: its number is the run's id
        self.created: Path | None = None  # the folder, once it is made; None for a resumed run
        self._resumed = None if run_dir is None else Path(run_dir)
        self._lock = (
            threading.Lock()
        )  # Sacred's heartbeat thread may still be busy when the run ends
        self._dumped_size = -1
        self._next_dump = 0.0
        self._failing = False
        self._started = False  # until then errors are the caller's business

    def _make_run_dir(self, _id: str | None) -> None:
        if self._resumed is not None:
            self.dir = str(self._resumed)
            return
        try:
            try:
                super()._make_run_dir(_id)
            except (
                FileNotFoundError
            ):  # another run that failed early has just removed the empty parents
                super()._make_run_dir(_id)
        except OSError as exc:
            wanted, self.dir = Path(self.basedir) / str(_id), None  # Sacred sets it before it tries
            if isinstance(exc, FileExistsError):
                raise UserError(
                    f"run {_id} exists already: {wanted}; resume={wanted} continues it"
                ) from exc
            raise
        self.created = self.path

    @property
    def path(self) -> Path:
        """The folder of the run, which must have begun."""
        assert self.dir is not None
        return Path(self.dir)

    def started_event(
        self,
        ex_info: dict[str, Any],
        command: str,
        host_info: dict[str, Any],
        start_time: datetime,
        config: dict[str, Any],
        meta_info: dict[str, Any],
        _id: str | None,
    ) -> str:
        """Makes the folder, or takes up the old one: `run.json` then lists in `resumed` when that
        happened.
        """
        before: dict[str, Any] = {}
        if self._resumed is not None:
            before = _read_json(self._resumed / "run.json")
        run_id = super().started_event(
            mask_secrets(ex_info), command, host_info, start_time, config, meta_info, _id
        )
        if before:
            self.run_entry["resumed"] = [*before.get("resumed", []), start_time.isoformat()]
            self.run_entry["start_time"] = before.get("start_time", self.run_entry["start_time"])
            for key in ("resources", "artifacts"):
                self.run_entry[key] = before.get(key, [])
            self.save_json(self.run_entry, "run.json")
        self._started = True
        return run_id

    def watch(self, info: dict[str, Any]) -> None:
        """The run's info, for a run that ends before its first heartbeat or has none."""
        self.info = info

    def save_json(self, obj: Any, filename: str) -> None:
        """Replaces one file, atomically."""
        # The info is large, and written faster without indents.
        write_json(self.path / filename, obj, indent=None if filename == "info.json" else 2)

    def heartbeat_event(
        self, info: dict[str, Any], captured_out: str, beat_time: datetime, result: object
    ) -> None:
        """Appends to cout.txt, rewrites run.json, and info.json when it is its time."""
        with self._lock:
            self.info, self.cout = info, captured_out
            self.run_entry["heartbeat"] = beat_time.isoformat()
            self.run_entry["result"] = result
            self._try(self._beat)

    def completed_event(self, stop_time: datetime, result: object) -> None:
        """The last state of everything, status COMPLETED."""
        self._end(stop_time, "COMPLETED", result=result)

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        """The last state of everything, status INTERRUPTED (or what the interruption says)."""
        self._end(interrupt_time, status)

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        """The last state of everything, status FAILED."""
        self._end(fail_time, "FAILED", fail_trace=fail_trace)

    def log_metrics(self, metrics_by_name: dict[str, Any], info: dict[str, Any]) -> None:
        """What a plug-in records with Sacred's own `log_scalar`, in metrics.json; without any there
        is no such file.
        """
        if metrics_by_name:
            self._try(lambda: super(RunFolder, self).log_metrics(metrics_by_name, info))

    def _beat(self) -> None:
        self.save_cout()
        self.save_json(self.run_entry, "run.json")
        if time.monotonic() >= self._next_dump:
            self._dump_info()

    def _dump_info(self) -> None:
        size = _size(self.info)
        if size in (0, self._dumped_size):
            return
        start = time.monotonic()
        self.save_json(_snapshot(self.info), "info.json")
        self._dumped_size = size
        self._next_dump = time.monotonic() + (time.monotonic() - start) / _DUMP_SHARE

    def _end(self, stop_time: datetime, status: str, **fields: object) -> None:
        if not self._started:
            return
        with self._lock:
            self.run_entry.update(stop_time=stop_time.isoformat(), status=status, **fields)
            self._try(self._dump_info)
            self._try(self.save_cout)
            self._try(lambda: self.save_json(self.run_entry, "run.json"))
            self._try(self.render_template)

    def _try(self, write: Any) -> None:
        """Sacred drops an observer for good after its first exception: this one is to go on."""
        try:
            write()
            self._failing = False
        except Exception as exc:
            if not self._failing:
                _log.warning(
                    "%s: cannot write Sacred's files (%s); trying again later", self.dir, exc
                )
            self._failing = True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        _log.warning("%s is not readable (%s): written anew", path, exc)
        return {}


class Detached(RunObserver):
    """Another observer in a thread of its own: a database that is slow or away never stops or
    delays training.

    The start of a run waits for it 10 s, the end 15 s. The first failure is logged, and the next
    one after it worked again; if the start fails, the run is not recorded there.

    Args:
        name: for messages.
        observer: the observer.
    """

    priority = 0

    def __init__(self, name: str, observer: RunObserver) -> None:
        self._name = name
        self._observer = observer
        self._beating = (
            threading.Event()
        )  # a heartbeat is on its way: another one would say the same
        self._failing = False
        self._dead = False
        self._thread = Background(f"observer-{name}")

    def started_event(
        self,
        ex_info: dict[str, Any],
        command: str,
        host_info: dict[str, Any],
        start_time: datetime,
        config: dict[str, Any],
        meta_info: dict[str, Any],
        _id: str | None,
    ) -> None:
        """Passes the event on; the database numbers its runs itself."""
        event = {
            "ex_info": ex_info,
            "command": command,
            "host_info": host_info,
            "start_time": start_time,
            "config": config,
            "meta_info": meta_info,
            "_id": None,
        }
        self._thread.start()
        if not self._send("started_event", event).wait(_START_WAIT):
            self._warn("does not answer; it gets the run if it does later")

    def heartbeat_event(
        self, info: dict[str, Any], captured_out: str, beat_time: datetime, result: object
    ) -> None:
        """Passes the event on, unless the last one is still waiting."""
        if self._beating.is_set():
            return
        self._beating.set()
        event = {
            "info": info,
            "captured_out": captured_out,
            "beat_time": beat_time,
            "result": result,
        }
        self._send("heartbeat_event", event)

    def log_metrics(self, metrics_by_name: dict[str, Any], info: dict[str, Any]) -> None:
        """Passes the event on."""
        if metrics_by_name:
            self._send(
                "log_metrics", {"metrics_by_name": metrics_by_name, "info": info}
            )  # gets the database's ids

    def completed_event(self, stop_time: datetime, result: object) -> None:
        """Passes the event on."""
        self._finish("completed_event", {"stop_time": stop_time, "result": result})

    def interrupted_event(self, interrupt_time: datetime, status: str) -> None:
        """Passes the event on."""
        self._finish("interrupted_event", {"interrupt_time": interrupt_time, "status": status})

    def failed_event(self, fail_time: datetime, fail_trace: list[str]) -> None:
        """Passes the event on."""
        self._finish("failed_event", {"fail_time": fail_time, "fail_trace": fail_trace})

    def resource_event(self, filename: str) -> None:
        """Passes the event on."""
        self._send("resource_event", {"filename": filename})

    def artifact_event(
        self,
        name: str,
        filename: str,
        metadata: dict[str, Any] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Passes the event on."""
        event = {
            "name": name,
            "filename": filename,
            "metadata": metadata,
            "content_type": content_type,
        }
        self._send("artifact_event", event)

    def _send(self, method: str, event: dict[str, Any]) -> threading.Event:
        return self._thread.call(partial(self._handle, method, event))

    def _finish(self, method: str, event: dict[str, Any]) -> None:
        if not self._send(method, event).wait(_END_WAIT):
            self._warn("does not answer; the end of the run is not recorded there")
        self._thread.end()

    def _handle(self, method: str, event: dict[str, Any]) -> None:
        if method == "heartbeat_event":
            self._beating.clear()
            event["info"] = _snapshot(
                event["info"]
            )  # as late as can be: the next one may be left out
        if not self._dead:
            self._pass_on(method, event)

    def _pass_on(self, method: str, event: dict[str, Any]) -> None:
        try:
            try:
                getattr(self._observer, method)(**event)
            except Exception:
                if not self._rolled_back():
                    raise
                getattr(self._observer, method)(**event)  # over a new connection
            self._failing = False
        except Exception as exc:  # whatever a database client raises
            self._rolled_back()
            self._dead = method == "started_event"
            what = (
                "cannot be reached: the run is not recorded there"
                if self._dead
                else "fails: trying again"
            )
            self._warn(f"{what} ({type(exc).__name__}: {textwrap.shorten(str(exc), 150)})")

    def _rolled_back(self) -> bool:
        """Whether it is an SQL session: after a failure that refuses everything until it is rolled
        back.
        """
        session = getattr(self._observer, "session", None)
        if session is None:
            return False
        with contextlib.suppress(Exception):  # the database may still be away
            session.rollback()
        return True

    def _warn(self, what: str) -> None:
        if not self._failing:
            _log.warning("observers.%s: the database %s", self._name, mask_secrets(what))
        self._failing = True


class Mongo(MongoObserver):
    """Sacred's observer, with what Omniboard draws and a resumed run under its old `_id`.

    Omniboard draws the collection `metrics`, which Sacred fills with what a run logs by
    `log_scalar`, and finds its documents by the ids in the run's `info.metrics`. Here the series of
    the info go there, too: at each heartbeat their new points. Those of a resumed run replace the
    old ones, because its info begins with all figures up to the checkpoint.

    Args:
        folder: the run's folder, which keeps the `_id`.
        options: Sacred's.
    """

    run_entry: dict[str, Any]

    def __init__(self, folder: RunFolder, **options: Any) -> None:
        super().__init__(**options)
        self._folder = folder
        self._sent: dict[str, int] = {}  # points of every series
        self._links: dict[str, list[dict[str, str]]] = {"metrics": []}

    def started_event(
        self,
        ex_info: dict[str, Any],
        command: str,
        host_info: dict[str, Any],
        start_time: datetime,
        config: dict[str, Any],
        meta_info: dict[str, Any],
        _id: int | None,
    ) -> int:
        """Inserts the run, or takes up the run that it was before."""
        known = recall(self._folder.path, "mongo").get("id")
        before = None if known is None else self.runs.find_one({"_id": known})
        if before is not None:
            self.overwrite = {**before, **dict.fromkeys({"stop_time", "fail_trace"} & set(before))}
            start_time = before["start_time"]
            self._links["metrics"] = before["info"].get("metrics", [])
        run_id: int = super().started_event(
            ex_info, command, host_info, start_time, config, meta_info, _id
        )
        note(self._folder.path, "mongo", {"id": run_id})
        return run_id

    def heartbeat_event(
        self, info: dict[str, Any], captured_out: str, beat_time: datetime, result: object
    ) -> None:
        """Saves the run, and new points of the info's series in the metrics."""
        for key, steps in info.items():
            series = key.removesuffix("_T")
            if series != key and isinstance(info.get(series), list):
                self._send(series, info[series], steps, beat_time)
        super().heartbeat_event({**info, **self._links}, captured_out, beat_time, result)

    def log_metrics(self, metrics_by_name: dict[str, Any], info: dict[str, Any]) -> None:
        """What a plug-in records with Sacred's `log_scalar`."""
        super().log_metrics(metrics_by_name, self._links)

    def _send(self, key: str, values: list[Any], steps: list[int], now: datetime) -> None:
        if key not in self._sent:
            self._forget(key)
        begin = self._sent.setdefault(key, 0)
        new = {"values": values[begin:], "steps": steps[begin:]}
        if new["values"]:
            times = [now] * len(new["values"])
            super().log_metrics({key: {**new, "timestamps": times}}, self._links)
            self._sent[key] = len(values)

    def _forget(self, key: str) -> None:
        """Of this run before it was resumed."""
        if any(link["name"] == key for link in self._links["metrics"]):
            self.metrics.delete_one({"run_id": self.run_entry["_id"], "name": key})
            self._links["metrics"] = [
                link for link in self._links["metrics"] if link["name"] != key
            ]


def make_observers(config: Mapping[str, Any], folder: RunFolder) -> list[RunObserver]:
    """The observers of config key `observers`; one that cannot be made (package missing, bad
    options) is a warning.

    Args:
        config: the run's.
        folder: the observer that makes the run's folder, before these are told of the run.
    """
    made: list[RunObserver] = []
    for name, options in config["observers"].items():
        try:
            made.append(Detached(name, _MAKERS[name](dict(options), config, folder)))
        except ImportError as exc:
            install = {"mongo": "-r requirements-mongo.txt", "sql": "sqlalchemy"}[name]
            _log.warning("observers.%s: not used, %s; pip install %s", name, exc, install)
        except Exception as exc:  # whatever a database client raises
            _log.warning(
                "observers.%s: not used, %s: %s", name, type(exc).__name__, mask_secrets(str(exc))
            )
    return made


def _mongo(options: dict[str, Any], config: Mapping[str, Any], folder: RunFolder) -> RunObserver:
    options.setdefault("serverSelectionTimeoutMS", 5000)
    options.setdefault("failure_dir", str(Path(config["local_results_path"]) / "mongo_failed"))
    return Mongo(folder, **options)


def _sql(options: dict[str, Any], config: Mapping[str, Any], folder: RunFolder) -> RunObserver:
    from sacred.observers import SqlObserver

    return SqlObserver(**options)


_MAKERS = {"mongo": _mongo, "sql": _sql}


_SECRETS = (
    (re.compile(r"(://)\S+@"), r"\1***@"),
    (re.compile(r"(\burl=(?:\w+:/*)?)(?!\S*://)\S+@"), r"\1***@"),
    (re.compile(r"(^|[\s=\"'])(?!\S*://)[^\s=:@\"']+:\S+@"), r"\1***@"),
    (re.compile(r"(\bpassword=)[^&\s]+"), r"\1***"),
)


def mask_secrets(content: Any) -> Any:
    """A copy without the user names and passwords of URLs and without entries named password: for
    what is recorded.

    A URL that lacks its `://` is known by `user:password@`, and by its entry's name, `url`.
    """
    if isinstance(content, str):
        for pattern, masked in _SECRETS:
            content = pattern.sub(masked, content)
        return content
    if isinstance(content, Mapping):
        return {
            key: "***"
            if key == "password"
            else mask_secrets(f"url={value}")[len("url=") :]
            if key == "url" and isinstance(value, str)
            else mask_secrets(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [mask_secrets(value) for value in content]
    return content


def masked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it is recorded: without passwords of databases and servers."""
    return {**config, **{key: mask_secrets(config[key]) for key in ("observers", "logger_args")}}

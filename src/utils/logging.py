"""What a run says: on the console, in its result files, to Sacred and to other loggers.

`metrics.jsonl` is the source of truth: one JSON object per line, `{"t": steps, "key": name,
"value": number or list}`. Sacred's info holds the same numbers in PyMARL's form (lists `key` and
`key_T`) and is rebuilt from that file when a run is resumed. Wall-clock figures go to
`timing.jsonl` only, so that equal seeds give equal metrics and equal info.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.highlighter import NullHighlighter
from rich.live import Live
from rich.logging import RichHandler
from rich.text import Text

from utils.errors import UserError
from utils.line_file import FilePosition, LineFile, check_lines
from utils.loggers import Attached
from utils.loggers.base import Recorded

Position = dict[str, FilePosition]
Number = int | float | None

_FORMAT = "[%(levelname)s %(asctime)s] %(message)s"
_CLOCK = "%H:%M:%S"
_HANDLER = "console"
_RECENT = 5  # values of a figure that recent statistics are the mean of
_KEPT = 64  # values of a figure kept in memory for that
_CELL = 38  # width of a figure in the recent statistics
_PREFIX = 20  # width of time and level before a log line on a terminal
_REFRESH = 0.1  # [s] between two drawings of the progress line
_RATE_WINDOW = 30.0  # [s] over which steps per second are measured


# --- Console ---


def _is_chatter(record: logging.LogRecord) -> bool:
    """Sacred's own notes about a run; `main.py` reports how a run ended, warnings about observers
    stay.
    """
    from_run = record.module == "run" and "sacred" in record.pathname
    return from_run and (
        record.levelno < logging.WARNING
        or str(record.msg).startswith(("Failed after", "Aborted after"))
    )


def _quiet(handler: logging.Handler) -> logging.Handler:
    handler.addFilter(lambda record: not _is_chatter(record))
    return handler


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time, so that a recorder in between sees it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(_FORMAT, _CLOCK))

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def get_logger() -> logging.Logger:
    """The console logger: the root logger at level INFO, in colour on a terminal, plain lines
    otherwise.
    """
    logger = logging.getLogger()
    if not any(handler.name == _HANDLER for handler in logger.handlers):
        console = Console(file=sys.stderr)
        if console.is_terminal and not console.is_dumb_terminal:
            handler: logging.Handler = RichHandler(
                console=console,
                show_path=False,
                log_time_format=f"[{_CLOCK}]",
                highlighter=NullHighlighter(),
            )
        else:
            handler = _StderrHandler()
        handler.set_name(_HANDLER)
        logger.addHandler(_quiet(handler))
        logger.setLevel(logging.INFO)
    return logger


def _terminal() -> Console | None:
    """The console that `get_logger` draws on, if it is a terminal."""
    for handler in logging.getLogger().handlers:
        if handler.name == _HANDLER and isinstance(handler, RichHandler):
            return handler.console
    return None


class _Tee:
    """A text stream that also writes into a recorder. Everything else is the stream's own."""

    def __init__(self, stream: TextIO, recorder: io.StringIO) -> None:
        self.stream = stream
        self._recorder = recorder

    def write(self, text: str) -> int:
        self._recorder.write(text)
        try:
            self.stream.write(text)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise  # the terminal is gone: the record goes on
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def record_output() -> Iterator[io.StringIO]:
    """Records what is logged and printed: without colours, and without the progress line of a
    terminal.

    (Sacred's own capturing either hides the terminal from the process or records every drawing of
    the progress line.)
    """
    recorder = io.StringIO()
    logger, streams = logging.getLogger(), (sys.stdout, sys.stderr)
    extra = None
    if _terminal() is not None:  # rich writes to the terminal itself, past the tees
        extra = _quiet(logging.StreamHandler(recorder))
        extra.setFormatter(logging.Formatter(_FORMAT, _CLOCK))
        logger.addHandler(extra)
    sys.stdout, sys.stderr = _Tee(sys.stdout, recorder), _Tee(sys.stderr, recorder)
    try:
        yield recorder
    finally:
        sys.stdout, sys.stderr = streams
        if extra is not None:
            logger.removeHandler(extra)


def format_duration(seconds: float) -> str:
    """`1:02:03`, and with more than a day `2d 01:02:03`; `-` for an unknown (infinite) duration."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (
        f"{days}d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours}:{minutes:02}:{rest:02}"
    )


# --- Files ---


def _number(value: Any) -> int | float:
    """A Python number out of one, a NumPy scalar or a tensor with one element."""
    if hasattr(value, "item"):
        value = value.item()
    return int(value) if isinstance(value, int) else float(value)


def _json_number(value: int | float) -> Number:
    return value if isinstance(value, int) or math.isfinite(value) else None


def _series(entry: Mapping[str, Any]) -> str:
    """The name under which a file's entry is known: a list may have the key of a number."""
    return f"{entry['key']}[]" if isinstance(entry["value"], list) else entry["key"]


def _recorded(sizes: Mapping[Path, int]) -> list[Recorded]:
    """What the first bytes of the files record, in the order of the steps."""
    found = []
    for path, size in sizes.items():
        with path.open("rb") as file:
            for line in file.read(size).splitlines():
                entry = json.loads(line)
                value = math.nan if entry["value"] is None else entry["value"]
                found.append(Recorded(entry["key"], value, entry["t"]))
    return sorted(found, key=lambda recorded: recorded.t)


# --- Logger ---


class _SacredRun(Protocol):
    info: dict[str, Any]


class Logger:
    """PyMARL's logger with result files of its own.

    Args:
        console_logger: where `print_recent_stats` and warnings go.

    A figure is recorded once per key and t: a second value at the same t as the last one is left
    out.
    """

    def __init__(self, console_logger: logging.Logger) -> None:
        self.console_logger = console_logger
        self.use_sacred = False
        self.stats: defaultdict[str, list[tuple[int, int | float]]] = defaultdict(list)
        self._last_t: dict[str, int] = {}
        self._files: dict[str, LineFile] = {}
        self._loggers: list[Attached] = []
        self._info: dict[str, Any] = {}

    def setup_loggers(self, loggers: list[Attached]) -> None:
        """Passes what is recorded on to other loggers too, from the next `rewind` on."""
        self._loggers = loggers

    def setup_sacred(self, sacred_run_dict: _SacredRun) -> None:
        """Writes into a Sacred run's `info` too: lists `key` and `key_T`."""
        self._info = sacred_run_dict.info
        self.use_sacred = True

    def setup_files(self, run_dir: str | Path) -> None:
        """Appends to `metrics.jsonl` and `timing.jsonl` in `run_dir`."""
        try:
            self._files = {
                name: LineFile(Path(run_dir) / f"{name}.jsonl") for name in ("metrics", "timing")
            }
        except (IsADirectoryError, PermissionError) as exc:
            raise UserError(f"{exc.filename} cannot be written: {exc.strerror}") from exc

    def log_stat(self, key: str, value: Any, t: int, to_sacred: bool = True) -> None:
        """Records one figure.

        Args:
            value: a number, a NumPy scalar or a tensor with one element; NaN and infinity are
                written as null.
            t: environment steps so far.
            to_sacred: False: not into Sacred's info.
        """
        value, t = _number(value), int(t)
        if not self._is_new(key, t):
            return
        self._remember(key, value, t)
        entry = {"t": t, "key": key, "value": _json_number(value)}
        self._append("metrics", entry if to_sacred else {**entry, "sacred": False})
        if to_sacred:
            self._to_info(key, _json_number(value), t)
        for logger in self._loggers:
            logger.figure(key, value, t)

    def log_list(self, key: str, values: Sequence[Any], t: int) -> None:
        """Records a list of figures, e.g. the return of every evaluation episode: in
        `metrics.jsonl`, and in loggers that draw distributions.
        """
        if self._is_new(f"{key}[]", int(t)):
            numbers = [_json_number(_number(value)) for value in values]
            self._append("metrics", {"t": int(t), "key": key, "value": numbers})
            for logger in self._loggers:
                logger.values(key, numbers, int(t))

    def log_film(self, path: Path, t: int) -> None:
        """Shows loggers a film that was written."""
        for logger in self._loggers:
            logger.film(path, int(t))

    def log_timing(self, key: str, value: Any, t: int) -> None:
        """Records a wall-clock figure: in `timing.jsonl` and the loggers, not in Sacred's info or
        `metrics.jsonl`.
        """
        value, t = _number(value), int(t)
        self._append("timing", {"t": t, "key": key, "value": _json_number(value)})
        for logger in self._loggers:
            logger.figure(key, value, t)

    def print_recent_stats(self) -> None:
        """Logs the recent value of every figure: the last one for `episode` and `epsilon`, else the
        mean of five.
        """
        t_env = max((values[-1][0] for values in self.stats.values() if values), default=0)
        lines = [f"Recent Stats | t_env: {t_env:>10,}"]
        if self.stats.get("episode"):
            lines[0] += f" | Episode: {self.stats['episode'][-1][1]:>8,}"
        cells = []
        for key in sorted(self.stats):
            if key == "episode" or not self.stats[key]:
                continue
            recent = [value for _, value in self.stats[key][-1 if key == "epsilon" else -_RECENT :]]
            cells.append(f"{key + ':':<25}{sum(recent) / len(recent):>10.4f}")
        terminal = _terminal()
        columns = 4 if terminal is None else max(1, (terminal.width - _PREFIX) // _CELL)
        lines += [
            "   ".join(cells[start : start + columns]) for start in range(0, len(cells), columns)
        ]
        self.console_logger.info("%s", "\n".join(lines))

    def position(self) -> Position:
        """How much is written so far, for a checkpoint: lines and bytes of both files, all on the
        disk by then.
        """
        for file in self._files.values():
            file.sync()
        for logger in self._loggers:
            logger.flush()
        return {name: file.position() for name, file in self._files.items()}

    def rewind(self, position: Mapping[str, FilePosition]) -> None:
        """Goes back to `position()` of a checkpoint: cuts the files and rebuilds Sacred's info and
        `stats` from them.

        Needs `setup_files`. A file that lost lines since then (a crash of the machine) is used as
        far as it goes, with a warning. The other loggers begin here, or are told to go back, too.

        Raises:
            UserError: the metrics up to there are not those of the checkpoint; nothing is cut.
        """
        lost = self._lost(position) if self._loggers else {}
        for name, file in self._files.items():
            try:
                check_lines(file.path, position[name])
            except ValueError as exc:
                if name == "metrics":
                    raise UserError(f"the run cannot be continued: {exc}") from exc
                self.console_logger.warning("%s; it stays as it is", exc)
                continue
            file.cut(position[name]["bytes"])
            if file.lines != position[name]["lines"]:
                self.console_logger.warning(
                    "%s has %d lines where the checkpoint had %d: the difference is lost",
                    file.path,
                    file.lines,
                    position[name]["lines"],
                )
        self.stats.clear()
        for key in [*self._last_t, *(f"{key}_T" for key in self._last_t)]:
            self._info.pop(key, None)
        self._last_t.clear()
        with self._files["metrics"].path.open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                key, value, t = entry["key"], entry["value"], entry["t"]
                self._last_t[_series(entry)] = t
                if isinstance(value, list):
                    continue
                self._remember(key, math.nan if value is None else value, t)
                if "sacred" not in entry:
                    self._to_info(key, value, t)
        sizes = {file.path: file.bytes for file in self._files.values()}
        for logger in self._loggers:
            last_t = max(self._last_t.values(), default=-1)
            logger.begin(last_t, lost, partial(_recorded, sizes))

    def _lost(self, position: Mapping[str, FilePosition]) -> dict[str, int]:
        """The last step of every series that goes on behind `position` in a file."""
        lost = {}
        for name, file in self._files.items():
            with file.path.open("rb") as lines:
                lines.seek(position[name]["bytes"])
                for line in lines:
                    try:
                        entry = json.loads(line)
                        lost[_series(entry)] = entry["t"]
                    except (ValueError, KeyError, TypeError):
                        continue  # not an entry of a run: `rewind` judges that
        return lost

    def close(self) -> None:
        """Syncs and closes all files; nothing can be logged to them afterwards."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def close_loggers(self, status: str) -> None:
        """Ends the other loggers; see `Attached.close`."""
        for logger in self._loggers:
            logger.close(status)
        self._loggers = []

    def _is_new(self, key: str, t: int) -> bool:
        new = self._last_t.get(key) != t
        self._last_t[key] = t
        return new

    def _remember(self, key: str, value: int | float, t: int) -> None:
        values = self.stats[key]
        values.append((t, value))
        if len(values) >= 2 * _KEPT:
            del values[:-_KEPT]

    def _to_info(self, key: str, value: Number, t: int) -> None:
        if self.use_sacred:
            self._info.setdefault(key, []).append(value)
            self._info.setdefault(f"{key}_T", []).append(t)

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        if self._files:
            self._files[name].append(entry)


# --- Progress ---


class ProgressLine:
    """How far training is: a live line at the bottom of a terminal, log lines otherwise.

    Args:
        t_max: length of training [steps].
        log: where `line` writes.
        t_start: steps done before this process (a resumed run).
        spent: time spent before this process [s].
        console: draw here instead of on the terminal of `get_logger`.
    """

    def __init__(
        self,
        t_max: int,
        log: logging.Logger,
        t_start: int = 0,
        spent: float = 0.0,
        console: Console | None = None,
    ) -> None:
        self._t_max = t_max
        self._log = log
        self._t_env = t_start
        self._shares: Mapping[str, float] = {}
        self._last_test = ""
        self._began = time.monotonic() - spent
        self._sampled = -math.inf
        self._samples: deque[tuple[float, int]] = deque(
            [(time.monotonic(), t_start)]
        )  # the last _RATE_WINDOW seconds
        self._console = console or _terminal()
        self._live: Live | None = None
        self._diverted: list[tuple[_Tee, TextIO]] = []

    def update(self, t_env: int, shares: Mapping[str, float], last_test: str = "") -> None:
        """New figures; drawn at most ten times a second, so call it as often as you like.

        Args:
            t_env: steps so far.
            shares: fraction of the time per activity, in [0, 1]: environment, acting, learning,
                evaluation.
            last_test: the last evaluation in words, e.g. "test return 12.3".
        """
        self._t_env, self._shares, self._last_test = t_env, shares, last_test
        now = time.monotonic()
        if now - self._sampled >= _REFRESH:
            self._sample(now)
            if self._console is not None:
                self._draw()

    def line(self) -> None:
        """Logs the figures as one line, unless they are on the terminal anyway."""
        if self._console is None:
            self._sample(time.monotonic())
            self._log.info("%s", self.text())

    def text(self) -> str:
        """The line."""
        rate = self.steps_per_second()
        left = max(self._t_max - self._t_env, 0)
        parts = [
            f"t_env {self._t_env:,}/{self._t_max:,} ({100 * self._t_env / self._t_max:.0f}%)",
            f"{rate:,.0f} steps/s",
            f"ETA {format_duration(left / rate if rate > 0 else math.inf)}",
        ]
        if self._last_test:
            parts.append(self._last_test)
        if self._shares:
            parts.append(
                "time: "
                + ", ".join(f"{name} {100 * share:.0f}%" for name, share in self._shares.items())
            )
        return " | ".join(parts)

    def seconds(self) -> float:
        """Wall-clock time of the run so far, time before this process included [s]."""
        return time.monotonic() - self._began

    def steps_per_second(self) -> float:
        """Steps per second, over the last half minute."""
        (start, t_start), (end, t_end) = self._samples[0], self._samples[-1]
        return (t_end - t_start) / (end - start) if end > start else 0.0

    def close(self) -> None:
        """Leaves the last state of the line on the terminal."""
        if self._live is None:
            return
        for tee, stream in self._diverted:
            tee.flush()
            tee.stream = stream
        with contextlib.suppress(OSError):
            self._live.update(self._drawing())
            self._live.stop()
        self._live = None

    def _draw(self) -> None:
        try:
            if self._live is None:
                self._live = self._start()
            self._live.update(self._drawing(), refresh=True)
        except OSError:  # the terminal is gone; SIGHUP says so, too
            self._console = None
            self.close()

    def _drawing(self) -> Text:
        return Text(self.text(), no_wrap=True, overflow="ellipsis")

    def _start(self) -> Live:
        console = self._console
        assert console is not None
        tees = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _Tee)]
        live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=not tees,
            redirect_stderr=not tees,
        )
        live.start()
        # What is printed meanwhile appears above the line, and still passes the recorder.
        for tee in tees:
            if tee.isatty():
                self._diverted.append((tee, tee.stream))
                # It passes on all that it does not do itself, so it is a whole stream.
                tee.stream = cast("TextIO", FileProxy(console, tee.stream))
        return live

    def _sample(self, now: float) -> None:
        self._sampled = now
        self._samples.append((now, self._t_env))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW:
            self._samples.popleft()

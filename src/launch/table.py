"""How far runs are: read from the ends of their files, and shown as a table."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.folder import DONE, FAILED, RUNNING, STATES, Sweep, SweepRun
from launch.jobs import console

_TAIL = 16384  # [bytes] of a file that are read from its end
_EVERY = 2.0  # [s] between readings of the running runs' files
_FIGURES = ("test_battle_won_mean", "test_return_mean")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        t: environment steps at the last figure.
        t_max: environment steps of the whole run.
        rate: environment steps per second since it began.
        figure: the last evaluation in words.
    """

    t: int
    t_max: int | None
    rate: float | None
    figure: str

    @property
    def seconds_left(self) -> float | None:
        """At the speed it has had so far [s]."""
        if self.t_max is None or not self.rate:
            return None
        return max(self.t_max - self.t, 0) / self.rate


def progress(run: SweepRun) -> Progress | None:
    """How far a run is; None before its first figures."""
    folder = run.results
    if folder is None:
        return None
    steps, figure = 0, ""
    for entry in _from_the_end(folder / "metrics.jsonl"):
        steps = max(steps, int(entry["t"]))
        if entry["key"] in _FIGURES and not figure:
            figure = _in_words(entry["key"], entry["value"])
    timing = _from_the_end(folder / "timing.jsonl")
    rate = next((x["value"] for x in timing if x["key"] == "steps_per_second"), None)
    t_max = run.job.settings.get("t_max") or _t_max(folder / "config.json")
    return Progress(steps, int(float(t_max)) if t_max else None, rate, figure)


def _in_words(key: str, value: float | None) -> str:
    if value is None:  # not a number
        return ""
    return f"{value:.0%} won" if key == "test_battle_won_mean" else f"return {value:.4g}"


def _t_max(file: Path) -> int | None:
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["t_max"])
    except (FileNotFoundError, ValueError):  # not there yet
        return None


def _from_the_end(file: Path) -> Iterator[Mapping[str, Any]]:
    """The last lines of a file, the last one first; one that is half written is left out."""
    try:
        with open(file, "rb") as lines:
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(size - _TAIL, 0))
            tail = lines.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in reversed(tail[1:] if size > _TAIL else tail):
        if line.startswith(b"{") and line.endswith(b"}"):
            yield json.loads(line)


# --- Tables ---


def counts_in_words(
    states: Mapping[str, int], what: str = "runs", order: Sequence[str] = STATES
) -> str:
    """`12 runs: 4 running, 8 waiting`.

    Args:
        states: state -> how many there are.
        what: is counted.
        order: all states as they are to be named.
    """
    parts = [f"{states[state]} {state}" for state in order if states.get(state)]
    return f"{sum(states.values())} {what}: {', '.join(parts) or 'none'}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_table(rows: Sequence[tuple[SweepRun, str]], title: str) -> Table:
    """A row for every run: name, state, steps, steps/s, time left, last evaluation."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("run", "state", "steps", "of", "steps/s", "left", "last evaluation"):
        number = head in ("steps", "of", "steps/s", "left")
        table.add_column(
            head, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for run, state in rows:
        far = progress(run)
        cells = ["", "", "", "", ""]
        if far is not None:
            left = duration(far.seconds_left) if state == RUNNING else ""
            whole = f"{far.t_max:,}" if far.t_max else ""
            rate = f"{far.rate:,.0f}" if far.rate else ""
            cells = [f"{far.t:,}", whole, rate, left, far.figure]
        table.add_row(run.key, state, *cells)
    return table


class LiveTable:
    """What a local sweep shows: a table on a terminal, lines elsewhere.

    Args:
        done: runs that were finished before.
        live: whether there is a terminal to draw on.
    """

    def __init__(self, sweep: Sweep, done: int, live: bool, out: Console = console) -> None:
        self.sweep, self.out = sweep, out
        self._states = Counter({DONE: done})
        self._next = 0.0
        self._live = Live(console=out, auto_refresh=False, transient=True) if live else None
        out.print(f"{done} of {len(sweep.runs)} runs are done already; results: {sweep.folder}")

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, run: SweepRun) -> None:
        """A run begins, or goes on."""
        if self._live is None:
            self._line(f"started: {run.key}")

    def ended(self, run: SweepRun, state: str) -> None:
        """A run is done, failed or stopped."""
        self._states[state] += 1
        said = f": {run.last_line()}; {run.log}" if state == FAILED else ""
        self._line(f"{state} ({self._states[DONE]}/{len(self.sweep.runs)}): {run.key}{said}")

    def show(self, running: Sequence[SweepRun], stopping: bool) -> None:
        """Draws the table anew, every now and then."""
        if self._live is None or time.monotonic() < self._next:
            return
        states = {**self._states, RUNNING: len(running)}
        rest = len(self.sweep.runs) - sum(states.values())
        title = counts_in_words({**states, "waiting": rest})
        title += "; ending with checkpoints, Ctrl-C once more aborts" if stopping else ""
        self._live.update(run_table([(run, RUNNING) for run in running], title), refresh=True)
        self._next = time.monotonic() + _EVERY

    def _line(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self.out.print(f"[{stamp}] {text}", markup=False, highlight=False, soft_wrap=True)

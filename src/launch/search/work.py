"""The trials of one process: asked for, run side by side, looked at, told."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import Trial
from rich.live import Live

from launch.folder import DONE, RUNNING, AtWork, Sweep, SweepRun, plan
from launch.jobs import console
from launch.process import Process, side_by_side
from launch.search.best import write_best
from launch.search.figures import RunFigure, final_value, mean_by_evaluation
from launch.search.spec import Search, config_of, impossible
from launch.search.study import SharedStudy, TakenOver, summary
from launch.table import run_table
from utils.errors import RunFailure

_LOOK_EVERY = 1.0  # [s] between looks at what the runs have logged
_ASK_EVERY = 2.0  # [s] between questions for a trial where there was none
_DRAW_EVERY = 2.0  # [s]
_STARTS = 4  # of a run that signals end which nobody here has sent
_FAILURES = 5  # of trials in a row, after which something else must be wrong

_log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Where runs start."""

    def room(self) -> bool:
        """Whether a trial may be asked for."""

    def start(self, sweep: Sweep, run: SweepRun) -> Process | None:
        """The run; None: there is no room for it now.

        Raises:
            AtWork: another process has it.
        """

    def ended(self, run: SweepRun) -> None:
        """The run is over."""


@dataclass
class _Open:
    """A trial that this process has at work.

    Attributes:
        figures: of its runs, by key.
        running: its runs that are at work.
        told: evaluations that the storage knows.
        pruned, error, lost: why it ends before its runs are done: it is behind, a run failed,
            another process has taken it over.
    """

    trial: Trial
    chosen: Mapping[str, Any]
    sweep: Sweep
    figures: dict[str, RunFigure]
    running: dict[str, Process] = field(default_factory=dict)
    told: Mapping[int, float] = field(default_factory=dict)
    pruned: bool = False
    error: str = ""
    lost: bool = False

    @property
    def ending(self) -> bool:
        return self.pruned or self.lost or bool(self.error)

    def __str__(self) -> str:
        return f"trial {self.trial.number}"


_Item = tuple[_Open, SweepRun]


class Worker:
    """One process of a search.

    Args:
        live: draw a table of the runs at work; else a line for every trial is all.
    """

    def __init__(
        self, search: Search, study: SharedStudy, launcher: Launcher, live: bool = False
    ) -> None:
        self.search, self.study, self.launcher = search, study, launcher
        self._open: list[_Open] = []
        self._todo: deque[_Item] = deque()
        self._starts: Counter[tuple[int, str]] = Counter()
        self._failures = 0
        self._next_look = self._next_question = self._next_drawing = 0.0
        self._waiting = False
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None

    def run(self) -> None:
        """Works until all trials are over.

        Raises:
            Stopped: by SIGINT or SIGTERM; the runs have written checkpoints.
            RunFailure: several trials failed in a row, or the storage is gone.
            UserError: the runs do not log the figure that decides.
        """
        try:
            if self._live is not None:
                self._live.start()
            side_by_side(self._todo, self._start, self._ended, self._tick, self._more)
        finally:
            if self._live is not None:
                self._live.stop()
            self.study.close()

    # --- What `side_by_side` calls ---

    def _more(self) -> bool:
        """Asks for a trial where there is room; whether there may be more to do."""
        if not self.launcher.room() or time.monotonic() < self._next_question:
            return True
        asked = self.study.ask()
        if asked is not None:
            self._waiting = False
            self._begin(*asked)
            return True
        self._next_question = time.monotonic() + _ASK_EVERY
        others = self.study.others_at_work()
        if others and not self._open and not self._waiting:
            self._waiting = True
            self._say(f"waiting for {others} trials of other processes")
        return bool(others)

    def _start(self, item: _Item) -> Process | None:
        trial, run = item
        try:
            process = self.launcher.start(trial.sweep, run)
        except AtWork:  # what another process left is about to end
            return None
        if process is not None:
            trial.running[run.key] = process
            self._starts[trial.trial.number, run.key] += 1
        return process

    def _starts_of(self, item: _Item) -> int:
        return self._starts[item[0].trial.number, item[1].key]

    def _ended(self, item: _Item, process: Process, code: int) -> None:
        trial, run = item
        del trial.running[run.key]
        self.launcher.ended(run)
        if code == 0:
            trial.figures[run.key].over = True
        elif not trial.ending and code > 128 and self._starts_of(item) < _STARTS:
            self._todo.append(item)  # it goes on from its checkpoint
        elif not trial.ending:
            self._end(trial, error=run.last_line() or f"exit code {code}")
        self._finish(trial)

    def _tick(self, running: Sequence[Process], stopping: bool) -> None:
        for trial in self.study.beat():
            (mine,) = (one for one in self._open if one.trial is trial)
            self._say(f"{mine} was taken over by another process")
            self._end(mine, lost=True)
            self._finish(mine)
        if time.monotonic() >= self._next_look and not stopping:
            self._next_look = time.monotonic() + _LOOK_EVERY
            for one in list(self._open):
                self._look(one)
        self._draw(stopping)

    # --- Trials ---

    def _begin(self, trial: Trial, chosen: Mapping[str, Any]) -> None:
        jobs = self.search.jobs(chosen)
        folder = self.study.folder / "trials" / trial.user_attrs["folder"]
        experiment = self.search.experiment
        sweep = Sweep(
            folder,
            f"{experiment.name}-{trial.number}",
            "search",
            plan(jobs, folder),
            experiment.resources,
            experiment.slurm,
        )
        words = ", ".join(f"{key}={value}" for key, value in chosen.items())
        self._say(f"trial {trial.number}: {words}")
        mine = _Open(trial, chosen, sweep, {})
        self._open.append(mine)
        problem = next(filter(None, map(impossible, jobs)), None)
        if problem is not None:
            self._end(mine, error=problem)
        else:
            for run in sweep.runs:
                interval = config_of(run.job)["test_interval"]
                figure = RunFigure(run, self.search.metric, interval)
                figure.over = run.state() == DONE
                mine.figures[run.key] = figure
                if not figure.over:
                    self._todo.append((mine, run))
        self._finish(mine)

    def _look(self, mine: _Open) -> None:
        """Tells the pruner what the runs have reached."""
        if mine.ending:
            return
        for figure in mine.figures.values():
            figure.refresh()
        values = mean_by_evaluation(list(mine.figures.values()))
        if values != mine.told and self._report(mine, values):
            self._end(mine, pruned=True)
            self._finish(mine)

    def _report(self, mine: _Open, values: Mapping[int, float]) -> bool:
        """Whether the trial is to be pruned."""
        mine.told = values
        try:
            return self.study.report(mine.trial, values)
        except TakenOver:
            return False  # `beat` will tell

    def _end(
        self, mine: _Open, *, pruned: bool = False, error: str = "", lost: bool = False
    ) -> None:
        """Ends the runs of a trial."""
        mine.pruned, mine.error, mine.lost = pruned, error, lost
        left = [item for item in self._todo if item[0] is not mine]
        self._todo.clear()
        self._todo.extend(left)
        for process in mine.running.values():
            process.stop()

    def _finish(self, mine: _Open) -> None:
        """Tells what has become of a trial, once all of its runs are over."""
        if mine.running or any(item[0] is mine for item in self._todo):
            return
        self._open.remove(mine)
        if mine.lost:
            return
        if not mine.error and not mine.pruned:
            value = self._value(mine)
            if math.isfinite(value):
                self._complete(mine, value)
                return
            mine.error = f"{self.search.metric} is {value}"
        if mine.pruned:
            self._failures = 0
            self.study.prune(mine.trial)
            self._say(f"{mine} pruned")
            return
        self.study.fail(mine.trial, mine.error)
        self._say(f"{mine} failed: {mine.error}; {mine.sweep.folder}")
        self._failures += 1
        if self._failures == _FAILURES:
            raise RunFailure(
                f"{_FAILURES} trials in a row have failed, the last one with: {mine.error}; the "
                "same command goes on"
            )

    def _value(self, mine: _Open) -> float:
        figures = list(mine.figures.values())
        for figure in figures:
            figure.refresh()
        value = final_value(figures, self.search.last)
        # The last evaluations count for the pruning of later trials, too.
        self._report(mine, mean_by_evaluation(figures))
        return value

    def _complete(self, mine: _Open, value: float) -> None:
        self._failures = 0
        if not self.study.complete(mine.trial, value):
            return
        with self.study.turn():
            best = self.study.best()
            write_best(self.search, self.study.folder, best.number, best.value, best.chosen)
        self._say(f"{mine} complete: {value:.6g} (best: trial {best.number}, {best.value:.6g})")

    # --- What is shown ---

    def _say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        console.print(f"[{stamp}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self, stopping: bool) -> None:
        if self._live is None or time.monotonic() < self._next_drawing:
            return
        self._next_drawing = time.monotonic() + _DRAW_EVERY
        title = summary(self.study.study.get_trials(deepcopy=False))
        title += "; ending with checkpoints, Ctrl-C once more aborts" if stopping else ""
        rows = [
            (run, RUNNING)
            for mine in self._open
            for run in mine.sweep.runs
            if run.key in mine.running
        ]
        self._live.update(run_table(rows, title), refresh=True)

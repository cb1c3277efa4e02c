"""What the benchmarks share: sizes, configurations, batches, timing in turn, tables."""

from __future__ import annotations

import csv
import gc
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from assembly import build_learner, new_batch
from utils.config import CONFIG_DIR, load_file

ROOT = Path(__file__).resolve().parents[1]

# SMAC's map 6h_vs_8z.
N_AGENTS, N_ACTIONS, OBS, STATE, EPISODE_LIMIT = 6, 14, 78, 140, 150


class NoLog:
    """A logger that forgets everything."""

    def log_stat(self, key: str, value: float, t: int, to_sacred: bool = True) -> None:
        pass

    def log_list(self, key: str, values: Sequence[float], t: int) -> None:
        pass


def make_args(algorithm: str = "qmix", **overrides: Any) -> SimpleNamespace:
    """default.yaml <- algs/ALGORITHM.yaml <- these sizes <- `overrides`."""
    config = load_file(CONFIG_DIR / "default.yaml") | load_file(
        CONFIG_DIR / "algs" / f"{algorithm}.yaml"
    )
    sizes = {
        "n_agents": N_AGENTS, "n_actions": N_ACTIONS, "obs_shape": OBS, "state_shape": STATE,
        "continuous_actions": False, "episode_limit": EPISODE_LIMIT, "device": "cpu", "seed": 0,
        "learner_log_interval": 10**9, "runner_log_interval": 10**9,
    }  # fmt: skip
    return SimpleNamespace(**(config | sizes | overrides))


def make_learner(args: SimpleNamespace, seed: int = 0) -> Any:
    """A learner on the device `args.device`, its target networks a little off the online ones."""
    torch.manual_seed(seed)
    _, learner = build_learner(args, NoLog())
    for _, target in learner.targets:
        for param in target.parameters():
            param.add_(0.02 * torch.randn_like(param))
    return learner


def make_batch(
    args: SimpleNamespace, lengths: Sequence[int], max_steps: int, terminated: bool, seed: int = 0
) -> Any:
    """Random episodes as the replay buffer gives them.

    Args:
        lengths: filled steps of each episode, the last observation included.
        max_steps: T.
        terminated: whether the episodes end by the task's own rules; otherwise they are truncated.
    """
    rng = np.random.default_rng(seed)
    b, t, a, u = len(lengths), max_steps, args.n_agents, args.n_actions
    batch = new_batch(args, b, t)
    filled = np.arange(t) < np.asarray(lengths)[:, None]
    avail = rng.random((b, t, a, u)) < 0.6
    avail[..., 0] |= ~avail.any(-1)
    ended = np.zeros((b, t, 1))
    ended[np.arange(b), np.asarray(lengths) - 2] = terminated
    data = {
        "obs": rng.standard_normal((b, t, a, args.obs_shape), dtype=np.float32),
        "state": rng.standard_normal((b, t, args.state_shape), dtype=np.float32),
        "actions": np.where(avail, rng.random(avail.shape), -1).argmax(-1)[..., None],
        "avail_actions": avail,
        "reward": rng.standard_normal((b, t, 1), dtype=np.float32),
        "terminated": ended,
    }
    for value in data.values():
        value[~filled] = 0
    batch.update(data, mark_filled=False)
    batch.update({"filled": filled[..., None]}, mark_filled=False)
    return batch.to(args.device)


# -- timing ----------------------------------------------------------------------------------------


@dataclass
class Ratio:
    """How much of the reference's time ours takes: medians in ms, their ratio, quartiles of the
    pairwise ratios.
    """

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def in_turn(
    ours: Callable[[], Callable[[], Any]],
    theirs: Callable[[], Callable[[], Any]],
    repetitions: int,
    warm_up: int = 2,
    synchronise: Callable[[], Any] = lambda: None,
) -> Ratio:
    """Times two functions in turn, A B A B ..., so that both meet the same weather.

    Args:
        ours, theirs: prepare one repetition (not timed) and return the call that is timed.
        synchronise: waits for a device.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for repetition in range(warm_up + repetitions):
            for taken, prepare in zip(seconds, (ours, theirs), strict=True):
                call = prepare()
                synchronise()
                start = time.perf_counter()
                call()
                synchronise()
                if repetition >= warm_up:
                    taken.append(time.perf_counter() - start)
    finally:
        gc.enable()
    a, b = np.array(seconds) * 1000
    low, high = np.quantile(a / b, [0.25, 0.75])
    return Ratio(
        float(np.median(a)),
        float(np.median(b)),
        float(np.median(a) / np.median(b)),
        float(low),
        float(high),
    )


def median_seconds(call: Callable[[], Any], repetitions: int, warm_up: int = 1) -> float:
    """Median wall-clock time of a call."""
    taken = []
    for repetition in range(warm_up + repetitions):
        start = time.perf_counter()
        call()
        if repetition >= warm_up:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# -- tables ----------------------------------------------------------------------------------------


@dataclass
class Table:
    """One table of results: printed, and written as NAME.csv and as a section of the Markdown
    file.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Any) -> None:
        """Adds a row."""
        self.rows.append([str(cell) for cell in cells])

    def _rich(self, **style: Any) -> RichTable:
        table = RichTable(**style)
        for i, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def show(self, console: Console) -> None:
        """Prints the table."""
        if self.rows:
            console.print(self._rich(title=self.title, title_justify="left"))
        else:
            console.print(self.title, style="italic")
        if self.note:
            console.print(Text(self.note, style="dim"))
        console.print()

    def write(self, folder: Path) -> str:
        """Writes NAME.csv; returns the Markdown form."""
        with open(folder / f"{self.name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *self.rows])
        lines = []
        if self.rows:
            console = Console(width=300, file=io.StringIO())
            console.print(self._rich(box=box.MARKDOWN))
            lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
        return "\n".join([f"## {self.title}", "", *lines, "", self.note, ""])

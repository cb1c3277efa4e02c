"""`make demo`: S2Q beside QMIX in a few minutes, without a GPU and without StarCraft II.

On the shifting payoff the best joint action changes in mid-training: S2Q follows it and QMIX does
not. On 3m, SMAC's smallest map, both learn to win in the simulator, and a film shows a battle of
S2Q's first seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis import plots
from analysis.aggregate import curves
from analysis.runs import Run
from experiments.comparison import MEAN, Cells
from experiments.shifting_payoff import SWITCH, mark_change
from experiments.shifting_payoff import TASK as SHIFTING
from experiments.spec import Experiment
from launch.jobs import Job
from launch.local import run_jobs

FILMED = "3m"
BEST = 8.0  # of the shifting payoff, before and after the change
METRICS = {SHIFTING: "test_return_mean", FILMED: "test_battle_won_mean"}


def draw(experiment: Experiment, cells: Cells, out: Path) -> str:
    """Draws, films, and returns where the pictures are and what they show."""
    files = [file for file in plots.save(draw_curves(cells), out / "demo") if file.suffix == ".png"]
    lines = [
        f"{files[0]} shows learning curves: the mean of the seeds, and each seed as a thin line."
    ]
    if SHIFTING in cells:
        lines.append(
            "On the shifting payoff the best joint action is worth 8 at all times, but from step "
            f"{SWITCH:,} on it is another one."
        )
        lines += [sentence(label, runs) for label, runs in cells[SHIFTING].items()]
    if FILMED in cells:
        label, runs = list(cells[FILMED].items())[-1]
        film = out / f"{FILMED}.gif"
        shutil.copy(film_of(runs[0], out / "film"), film)
        lines.append(
            f"{film} shows a battle of {label}. Look at the blue lines: agents that have learned "
            "to win fire together at one enemy."
        )
    return "\n".join(lines)


def sentence(label: str, runs: Sequence[Run]) -> str:
    """In how many runs a method's greedy joint action is the best one before and after."""
    series = [run.metrics[METRICS[SHIFTING]] for run in runs]
    before = sum(one.values[one.t < SWITCH][-1] == BEST for one in series)
    after = sum(one.values[-1] == BEST for one in series)
    return (
        f"{label} has it before the change in {before} of {len(runs)} runs and at the end in "
        f"{after} of {len(runs)}."
    )


def draw_curves(cells: Cells) -> Figure:
    """A panel for each task that has runs."""
    panels = {
        task: [curves(runs, METRICS[task], label=label, method=MEAN) for label, runs in c.items()]
        for task, c in cells.items()
    }
    figure = plots.draw(panels, ylabel="", method=MEAN, seeds=True)
    for axes, task in zip(figure.axes, panels, strict=True):
        if task == SHIFTING:
            axes.set_ylabel("Value of the greedy joint action")
            mark_change(axes)
        else:
            axes.set_ylabel("Test win rate")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def film_of(run: Run, results: Path) -> Path:
    """A battle of a run's final policy."""
    settings = {
        "runner": "vector",
        "env_args.map_name": FILMED,
        "env_args.replay_dir": str(results / "replays"),
        "evaluate": True,
        "checkpoint_path": str(run.path / "checkpoints"),
        "batch_size_run": 1,
        "test_nepisode": 1,
        "save_replay": True,
        "use_cuda": False,
        "seed": run.seed,
    }
    run_jobs([Job(run.name, "sc2sim", settings)], results, processes=1)
    return max((results / "replays").glob("*.gif"))

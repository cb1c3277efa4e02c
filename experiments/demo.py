"""`make demo`: real learning curves and a film in a few minutes, without a GPU and without
StarCraft II.

QMIX learns to win 3m, SMAC's smallest map, in the simulator, and plays DAC's matrix game, whose
best joint action is surrounded by punishments: there it settles for less, which is what the papers
say of it. The curves are drawn by `analysis.report`, the film shows the first seed's final policy.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from analysis.report import Style, write_report
from analysis.runs import Run
from experiments.comparison import Cells
from experiments.spec import Experiment
from launch.jobs import Job
from launch.local import run_jobs

FILMED = "3m"


def draw(experiment: Experiment, cells: Cells, out: Path) -> str:
    """Draws, films, and returns where the pictures are."""
    runs = [run for groups in cells.values() for found in groups.values() for run in found]
    report = write_report(
        [run.path for run in runs],
        out=out,
        metrics=list(experiment.metrics),
        style=Style(seeds=True),
    )
    files = list(report.files)
    if FILMED in cells:
        files.append(out / f"{FILMED}.gif")
        shutil.copy(film(next(iter(cells[FILMED].values()))[0], out / "film"), files[-1])
    text = (
        "Open the .png (learning curves, the mean over two seeds and each seed as a thin line) and "
        "the .gif."
    )
    return "\n".join([*map(str, files), text])


def film(run: Run, results: Path) -> Path:
    """Two battles of a run's final policy."""
    settings = {
        "runner": "vector",
        "env_args.map_name": FILMED,
        "evaluate": True,
        "checkpoint_path": str(run.path / "checkpoints"),
        "batch_size_run": 1,
        "test_nepisode": 2,
        "render": True,
        "use_cuda": False,
        "seed": run.seed,
    }
    (filmed,) = run_jobs([Job(run.name, "sc2sim", settings)], results, processes=1)
    return filmed / "evaluation.gif"

"""`make demo`: real learning curves and a film in a few minutes, without a GPU and without
StarCraft II.

QMIX learns to win 3m, SMAC's smallest map, in the simulator, and plays DAC's matrix game, whose
best joint action is surrounded by punishments: there it settles for less, which is what the papers
say of it. The curves are drawn by `analysis.report`, the film shows the first seed's final policy.
"""

from __future__ import annotations

import shutil
import time

from analysis.report import write_report
from experiments import ROOT
from experiments.common import Job, command, console, run_jobs

RESULTS = ROOT / "results" / "demo"
SEEDS = (1, 2)
MAP = "3m"
STARCRAFT = {
    "runner": "vector",
    "env_args.map_name": MAP,
    "epsilon_anneal_time": 40000,
    "t_max": 60000,
    "test_interval": 3000,
    "log_interval": 6000,
}
CLIMBING = {
    "runner": "vector",
    "env_args.map_name": "climbing",
    "epsilon_anneal_time": 8000,
    "t_max": 10000,
    "test_interval": 500,
    "log_interval": 2000,
}


def main() -> None:
    """Trains, draws, films, and says where the pictures are."""
    start = time.monotonic()
    jobs = [Job("qmix", "sc2sim", {**STARCRAFT, "use_cuda": False, "seed": seed}) for seed in SEEDS]
    jobs += [
        Job("qmix", "matrix_game", {**CLIMBING, "use_cuda": False, "seed": seed}) for seed in SEEDS
    ]
    runs = run_jobs(jobs, RESULTS)
    out = RESULTS / "report"
    report = write_report(
        runs, out=out, metrics=["test_battle_won_mean", "test_return_mean"], seeds=True
    )
    film = {
        "runner": "vector",
        "env_args.map_name": MAP,
        "evaluate": True,
        "checkpoint_path": str(runs[0] / "checkpoints"),
        "batch_size_run": 1,
        "test_nepisode": 2,
        "render": True,
        "use_cuda": False,
        "seed": SEEDS[0],
    }
    (filmed,) = run_jobs([Job("qmix", "sc2sim", film)], RESULTS / "film", processes=1)
    shutil.copy(filmed / "evaluation.gif", out / f"{MAP}.gif")
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    for file in (*report.files, out / f"{MAP}.gif"):
        console.print(f"{file.relative_to(ROOT)}")
    console.print(
        "Open the .png (learning curves, the mean over two seeds and each seed as a thin line) and "
        "the .gif."
    )


if __name__ == "__main__":
    command(main)

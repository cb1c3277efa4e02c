"""`make demo`: real learning curves in a few minutes, without StarCraft.

QMIX learns predator-prey without a penalty, where two predators have to stand beside a randomly moving prey together,
and DAC's matrix game, whose best joint action is surrounded by punishments: there QMIX settles for less, which is what
the papers say of it. The curves are drawn by `analysis.report`.
"""

from __future__ import annotations

import time

from analysis.report import write_report
from experiments import ROOT
from experiments.common import Job, console, run_jobs

RESULTS = ROOT / "results" / "demo"
SEEDS = (1, 2)
# Small enough for a laptop: short hunts, and eight updates for every eight episodes instead of one.
PREDATOR_PREY = {
    "runner": "vector",
    "env_args.episode_limit": 50,
    "batch_size": 32,
    "updates_per_collection": 8,
    "target_update_interval": 80,
    "epsilon_anneal_time": 30000,
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
    """Trains, draws, and says where the pictures are."""
    start = time.monotonic()
    jobs = [Job("qmix", "predator_prey", {**PREDATOR_PREY, "use_cuda": False, "seed": seed}) for seed in SEEDS]
    jobs += [Job("qmix", "matrix_game", {**CLIMBING, "use_cuda": False, "seed": seed}) for seed in SEEDS]
    runs = run_jobs(jobs, RESULTS)
    report = write_report(runs, out=RESULTS / "report", metrics=["test_return_mean"], seeds=True)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    for file in report.files:
        console.print(f"{file.relative_to(ROOT)}")
    console.print("Open the .png: learning curves, the mean over two seeds and each seed as a thin line.")


if __name__ == "__main__":
    main()

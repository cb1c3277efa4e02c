"""S2Q's ablations (its section 5.3) on the shifting payoff and on predator-prey with penalty 0.5.

`python -m experiments.s2q_ablations` trains S2Q, its five ablations and QMIX on both tasks and
writes the final test returns with 95% bootstrap intervals (`report.md`, `final.csv`) and the
learning curves. The settings of the shifting payoff are those of `experiments.shifting_payoff`,
whose finished runs count here, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from analysis.aggregate import Method
from analysis.report import write_report
from experiments import ROOT
from experiments import shifting_payoff as shifting
from experiments.common import Job, command, console, run_jobs

RESULTS = ROOT / "results" / "s2q_ablations"
ABLATIONS = ("s2q_oracle", "s2q_independent", "s2q_no_wtd", "s2q_no_soft", "s2q_random")
# A budget for one computer without a GPU (about half an hour of processor time for 5 seeds): short
# hunts, and four updates for every eight episodes instead of one.
PREDATOR_PREY = {
    "env_args.penalty": 0.5,
    "env_args.episode_limit": 50,
    "runner": "vector",
    "batch_size": 32,
    "updates_per_collection": 4,
    "target_update_interval": 80,
    "epsilon_anneal_time": 20000,
    "t_max": 40000,
    "test_interval": 2000,
    "log_interval": 10000,
    "use_cuda": False,
}
S2Q = {"s2q_temperature": 0.1, "s2q_alpha": 0.75}


def shifting_jobs(seeds: Sequence[int]) -> list[Job]:
    """Runs on the shifting payoff."""
    qmix, _, s2q = shifting.MAIN
    variants = [qmix, s2q, *(shifting.Variant(name, name, s2q.settings) for name in ABLATIONS)]
    return [variant.job(seed) for seed in seeds for variant in variants]


def predator_prey_jobs(seeds: Sequence[int]) -> list[Job]:
    """Runs on predator-prey."""
    settings = {"qmix": {}} | dict.fromkeys(("s2q", *ABLATIONS), S2Q)
    return [
        Job(name, "predator_prey", {**PREDATOR_PREY, **own, "seed": seed})
        for seed in seeds
        for name, own in settings.items()
    ]


# task -> its runs and where they are kept
TASKS = {
    "shifting_payoff": (shifting_jobs, shifting.RESULTS),
    "predator_prey": (predator_prey_jobs, RESULTS),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--task", choices=(*TASKS, "all"), default="all")
    parser.add_argument("--seeds", type=int, default=5, help="runs per algorithm (seeds 1, 2, ...)")
    parser.add_argument(
        "--processes", type=int, default=0, help="runs at a time; 0: one per processor"
    )
    options = parser.parse_args(argv)
    start = time.monotonic()
    seeds = range(1, options.seeds + 1)
    for task in TASKS if options.task == "all" else (options.task,):
        jobs, results = TASKS[task]
        runs = run_jobs(jobs(seeds), results, options.processes)
        out = RESULTS / task
        write_report(runs, out=out, metrics=["test_return_mean"], method=Method(statistic="mean"))
        console.print((out / "final.csv").read_text(encoding="utf-8"))
        console.print(f"{task}: {out / 'report.md'}")
    console.rule(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    command(main)

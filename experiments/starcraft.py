"""Learning curves on simulated StarCraft II maps.

`python -m experiments.starcraft` trains QMIX, OW-QMIX and S2Q on 3m, 2s3z and 5m_vs_6m and writes the test win rates
(`curves.png`, `final.md`). S2Q takes the paper's settings of a map where its table has them. An interrupted experiment
goes on from the runs' checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import ROOT
from experiments.common import Job, compare, console, finished, run_jobs
from utils.config import list_configs

RESULTS = ROOT / "results" / "starcraft"
MAPS = ("3m", "2s3z", "5m_vs_6m")
METHODS = {"QMIX": "qmix", "OW-QMIX": "ow_qmix", "S2Q": "s2q"}
SETTINGS = {
    "runner": "vector",
    "batch_size_run": 8,
    "test_interval": 10000,
    "test_nepisode": 32,
    "log_interval": 50000,
    "use_cuda": False,
}


def jobs_of(method: str, map_name: str, steps: int, seeds: Sequence[int]) -> list[Job]:
    """The runs of one curve."""
    own = {"env_args.map_name": map_name, "t_max": steps}
    if method == "S2Q" and map_name in list_configs("scenarios"):
        own["scenario"] = map_name
    return [Job(METHODS[method], "sc2sim", {**SETTINGS, **own, "seed": seed}) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--maps", nargs="+", default=MAPS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=500000, help="environment steps of a run")
    parser.add_argument("--seeds", type=int, default=3, help="runs per curve (seeds 1, 2, ...)")
    parser.add_argument("--processes", type=int, default=0, help="runs at a time; 0: one per processor")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs, the numbers and pictures")
    parser.add_argument("--report", action="store_true", help="only draw what is finished")
    options = parser.parse_args(argv)
    start = time.monotonic()
    seeds = range(1, options.seeds + 1)
    cells = {
        name: {method: jobs_of(method, name, options.steps, seeds) for method in options.methods}
        for name in options.maps
    }
    if not options.report:
        # Seed by seed, so that an experiment that is stopped early has all curves.
        todo = [group[i] for i in range(len(seeds)) for groups in cells.values() for group in groups.values()]
        run_jobs(todo, options.results, options.processes)
    done = {
        name: {method: runs for method, jobs in groups.items() if (runs := finished(jobs, options.results))}
        for name, groups in cells.items()
    }
    done = {name: groups for name, groups in done.items() if groups}
    if done:
        console.print(compare(done, "test_battle_won_mean", options.results, "Test win rate"), markup=False)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"pictures and numbers: {options.results}")


if __name__ == "__main__":
    main()

"""DAC's ablations (its appendix D.4) on predator-prey: window, number of contexts, weight of L_KL, exploration.

`python -m experiments.dac_ablations` trains every variant at a budget that is a fraction of the paper's and writes one
table (`final.md`) and the learning curves. An interrupted experiment goes on from the runs' checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from experiments import ROOT
from experiments.common import Job, compare, console, finished, run_jobs
from experiments.dac_predator_prey import SETTINGS

RESULTS = ROOT / "results" / "dac_ablations"
PENALTY = 0.5
REDUCED = {
    "scenario": "predator_prey",
    "env_args.penalty": PENALTY,
    "t_max": 1000000,
    "epsilon_anneal_time": 500000,
    "test_interval": 25000,
}
# The scenario's own values, written out: a run of another variant must not pass for one with these.
DEFAULTS = {"dac_k": 10, "dac_m": 10, "dac_beta": 0.001}
# panel -> label of a curve -> (algorithm, what it changes)
VARIANTS = {
    "window": {f"k = {k}": ("dac", {"dac_k": k}) for k in (5, 10, 15, 20)},
    "contexts": {f"m = {m}": ("dac", {"dac_m": m}) for m in (5, 10, 15, 20)},
    "weight of L_KL": {f"beta = {beta:g}": ("dac", {"dac_beta": beta}) for beta in (0.0, 0.001, 0.01, 0.1)},
    "exploration": {"random contexts": ("dac", {}), "always phi": ("dac_phi", {})},
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="runs per variant (seeds 1, 2, ...)")
    parser.add_argument("--processes", type=int, default=0, help="runs at a time; 0: one per processor")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs, the numbers and pictures")
    parser.add_argument("--report", action="store_true", help="only draw what is finished")
    options = parser.parse_args(argv)
    start = time.monotonic()
    cells = {
        panel: {
            label: [
                Job(algorithm, "predator_prey", {**SETTINGS, **REDUCED, **DEFAULTS, **own, "seed": seed})
                for seed in range(1, options.seeds + 1)
            ]
            for label, (algorithm, own) in variants.items()
        }
        for panel, variants in VARIANTS.items()
    }
    if not options.report:
        # Seed by seed, so that an experiment that is stopped early has all curves. The default is in every panel.
        todo = [group[i] for i in range(options.seeds) for groups in cells.values() for group in groups.values()]
        run_jobs(list({str(job): job for job in todo}.values()), options.results, options.processes)
    done = {
        panel: {label: runs for label, jobs in groups.items() if (runs := finished(jobs, options.results))}
        for panel, groups in cells.items()
    }
    done = {panel: groups for panel, groups in done.items() if groups}
    if done:
        console.print(compare(done, "test_return_mean", options.results, "Test return"), markup=False)
    console.rule(f"done in {time.monotonic() - start:.0f} s")
    console.print(f"pictures and numbers: {options.results}")


if __name__ == "__main__":
    main()

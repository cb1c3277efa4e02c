"""DAC against its baselines on predator-prey with a penalty for hunting alone (DAC, figure 3b to
3e).

`python -m experiments.dac_predator_prey` trains DAC, IQL, hysteretic Q-learning and I2Q, all
without parameter sharing, for the paper's 3.05 million steps and writes `curves.png` and
`final.md`. An interrupted experiment goes on from the runs' checkpoints. `--sweep` trains
hysteretic Q-learning with every beta of the paper's appendix D.2 instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import ROOT
from experiments.common import Job, carry_out, command, parser_of

RESULTS = ROOT / "results" / "dac_predator_prey"
PENALTIES = (0.5, 1.0, 0.3, 0.0)
BETAS = (0.01, 0.1, 0.3, 0.5, 0.7)
# The paper's settings (table 4), but one update for every eight episodes, as PyMARL makes with
# eight parallel workers.
SETTINGS = {
    "runner": "vector",
    "batch_size_run": 32,
    "updates_per_collection": 4,
    "t_max": 3050000,
    "epsilon_anneal_time": 1500000,
    "test_interval": 50000,
    "test_nepisode": 32,
    "log_interval": 250000,
    "use_cuda": False,
}
# Of the paper's sweep, 0.1 and 0.5 were tried at P = 0.5 (one seed): only 0.1 learned to capture.
BETA = 0.1
METHODS = {
    "DAC": ("dac", {}),
    "IQL": ("iql_ns", {}),
    "hysteretic": ("hysteretic", {"hysteretic_beta": BETA}),
    "I2Q": ("i2q", {}),
}


def jobs_of(method: str, penalty: float, updates: int, seeds: Sequence[int]) -> list[Job]:
    """The runs of one curve, with so many updates for every 32 episodes."""
    algorithm, own = METHODS[method]
    if algorithm == "dac":
        own = {"scenario": "predator_prey_p1" if penalty == 1.0 else "predator_prey"}
    own = {**own, "updates_per_collection": updates, "env_args.penalty": penalty}
    return [Job(algorithm, "predator_prey", {**SETTINGS, **own, "seed": seed}) for seed in seeds]


def sweep_of(beta: float, penalty: float, updates: int, seeds: Sequence[int]) -> list[Job]:
    """Runs of hysteretic Q-learning with another beta."""
    own = {"hysteretic_beta": beta, "updates_per_collection": updates, "env_args.penalty": penalty}
    return [Job("hysteretic", "predator_prey", {**SETTINGS, **own, "seed": seed}) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=3)
    parser.add_argument("--penalties", type=float, nargs="+", choices=PENALTIES, default=PENALTIES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="hysteretic Q-learning with every beta instead of METHODS",
    )
    parser.add_argument(
        "--updates",
        type=int,
        default=SETTINGS["updates_per_collection"],
        help="for every 32 episodes; the paper's: 32",
    )
    options = parser.parse_args(argv)
    updates = options.updates
    seeds = range(1, options.seeds + 1)
    cells = {
        f"P = {penalty:g}": {
            f"beta = {beta:g}": sweep_of(beta, penalty, updates, seeds) for beta in BETAS
        }
        if options.sweep
        else {method: jobs_of(method, penalty, updates, seeds) for method in options.methods}
        for penalty in options.penalties
    }
    out = options.results / ("sweep" if options.sweep else "report")
    if updates != SETTINGS["updates_per_collection"]:
        out = out.with_name(f"{out.name}_{updates}_updates")
    carry_out(cells, options, "test_return_mean", "Test return", out)


if __name__ == "__main__":
    command(main)

"""Learning curves on environments of other packages: SMAX, Google Research Football.

`python -m experiments.packages --tasks smax_3m smax_2s3z` cross-checks QMIX and VDN on SMAX,
`--tasks football` trains S2Q and QMIX on academy_3_vs_2 with worker processes; win rates in
`TASK/curves.png` and `TASK/final.md`. An interrupted experiment goes on from the runs' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import ROOT
from experiments.common import Job, carry_out, command, parser_of

RESULTS = ROOT / "results" / "packages"


class Task(NamedTuple):
    """A panel of its own."""

    environment: str
    map_name: str
    methods: Mapping[str, tuple[str, Mapping[str, Any]]]  # label -> (algorithm, what it sets)
    settings: Mapping[str, Any]
    steps: int
    win: str  # what the win rate stands for
    evaluations: int = 40  # during training


VALUE = {"QMIX": ("qmix", {}), "VDN": ("vdn", {})}
# Networks as wide as QMIX's: the paper's 256 units are 16 times the products, too much for two
# processors.
WIDTH = {"rnn_hidden_dim": 64, "central_rnn_hidden_dim": 64}
FOOTBALL = {"S2Q": ("s2q", {"scenario": "academy_3_vs_2", **WIDTH}), "QMIX": ("qmix", {})}
# Returns up to 20, as in SMAC, for which the algorithms' settings were found.
NATIVE = {"runner": "vector", "batch_size_run": 8, "env_args.reward_factor": 10.0}
PROCESSES = {"runner": "parallel", "batch_size_run": 8}
TASKS = {
    "smax_3m": Task("smax", "3m", VALUE, NATIVE, 500000, "Test win rate"),
    "smax_2s3z": Task("smax", "2s3z", VALUE, NATIVE, 500000, "Test win rate"),
    "football": Task(
        "gfootball", "academy_3_vs_2", FOOTBALL, PROCESSES, 300000, "Test episodes with a goal", 20
    ),
}


def jobs_of(task: Task, label: str, steps: int, seeds: Sequence[int]) -> list[Job]:
    """The runs of one curve."""
    algorithm, own = task.methods[label]
    settings = {
        **task.settings,
        "env_args.map_name": task.map_name,
        "t_max": steps,
        "test_interval": max(steps // task.evaluations, 1),
        "test_nepisode": 32,
        "log_interval": max(steps // 10, 1),
        "save_model_interval": max(steps // 5, 1),
        "use_cuda": False,
        **own,
    }
    return [Job(algorithm, task.environment, {**settings, "seed": seed}) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", help="only these of a task's methods")
    parser.add_argument("--steps", type=int, help="environment steps of a run; default: the task's")
    options = parser.parse_args(argv)
    seeds = range(1, options.seeds + 1)
    for name in options.tasks:
        task = TASKS[name]
        labels = [
            label for label in task.methods if options.methods is None or label in options.methods
        ]
        if not labels:
            parser.error(f"{name} has the methods {list(task.methods)}, none of {options.methods}")
        jobs = {label: jobs_of(task, label, options.steps or task.steps, seeds) for label in labels}
        carry_out({name: jobs}, options, "test_win_rate", task.win, options.results / name)


if __name__ == "__main__":
    command(main)

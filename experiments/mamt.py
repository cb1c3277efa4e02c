"""MAMT against MAAC and MAMD on the particle and sisl tasks (MAMT, table 10 and appendix D).

`python -m experiments.mamt --tasks spread` trains every method of a task for the paper's number of
episodes and writes the returns of training (`curves.png`, `final.md`): the last five records, of
200 episodes each, are the paper's "last 1000 episodes". An interrupted experiment goes on from the
runs' checkpoints. `experiments.mamt_figures` draws the paper's figures 3 to 5 from one of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import ROOT
from experiments.common import Job, carry_out, command, parser_of

RESULTS = ROOT / "results" / "mamt"
MAIN = {"MAAC": "maac", "MAMD": "mamd", "MAMT": "mamt"}
# The split known beforehand shows what a split of the trust region can do (appendix D).
DILEMMA = {"MAAC": "maac", "MAMD": "mamd", "MAMD-OP": "mamd_op"}
BASELINES = {"MA-PPO": "ma_ppo", "MADDPG": "maddpg"}
VARIANTS = {
    "random C": "mamt_random",
    "fixed C": "mamt_fixed",
    "weighted sum": "mamt_ws",
    "PPO": "mamt_ppo",
}
ON_POLICY = ("ma_ppo", "mamt_ppo")


class Task(NamedTuple):
    """A panel of the picture."""

    environment: str
    methods: dict[str, str]
    episodes: int
    seeds: int
    steps: int  # of an episode; those of Multi-Walker may end earlier
    settings: Mapping[str, Any] = {}
    split: Mapping[str, Any] = {}  # of MAMT and its variants
    region: Mapping[str, Any] = {}  # of these and MAMD
    on_policy: Mapping[str, Any] = {}  # of methods that learn from the newest episodes


# Among 8 agents a share of 1/7 is nothing special: no coefficient would reach the default of 0.2.
MANY = {"coordination_sigma": 0.02}
# A share of 10 / 8 lets no policy move: advantages of standardised rewards are 0.02 to 0.1 here.
WIDE = {"trust_region_delta": 100.0}
# About the paper's 4,096 transitions of a batch, in episodes of 500 steps.
LONG = {"batch_size_run": 8, "accumulated_episodes": 8, "batch_size": 8}
TASKS = {
    "spread": Task("spread", MAIN, 10000, 5, 25),
    "rover_tower": Task("rover_tower", MAIN, 50000, 3, 25, split=MANY, region=WIDE),
    "spread3_sep": Task("spread3_sep", DILEMMA, 10000, 3, 25),
    "spread3_mix": Task("spread3_mix", DILEMMA, 10000, 3, 25),
    "spread3_ful": Task("spread3_ful", DILEMMA, 10000, 3, 25),
    # Longer episodes: as many transitions in the buffer.
    "pursuit": Task(
        "pursuit",
        MAIN,
        50000,
        3,
        500,
        {"buffer_size": 2000, "buffer_dtype": "float16"},
        MANY,
        WIDE,
        LONG,
    ),
    "multiwalker": Task("multiwalker", MAIN, 50000, 3, 500, {"buffer_size": 2000}, on_policy=LONG),
}
OTHERS = {"baselines": BASELINES, "variants": VARIANTS, "LOLA": {"LOLA": "lola"}}


def jobs_of(
    task: Task, algorithm: str, episodes: int, settings: dict[str, Any], seeds: Sequence[int]
) -> list[Job]:
    """The runs of one curve."""
    steps = episodes * task.steps
    own = {
        "t_max": steps,
        "runner_log_interval": 200 * task.steps,
        "learner_log_interval": 200 * task.steps,
        "test_interval": max(steps // 20, 1),
        "log_interval": max(steps // 10, 1),
        "save_model_interval": max(steps // 5, 1),
        "use_cuda": False,
        **task.settings,
        **(task.split if algorithm.startswith("mamt") else {}),
        **(task.region if algorithm.startswith(("mamt", "mamd")) else {}),
        **(task.on_policy if algorithm in ON_POLICY else {}),
        **settings,
    }
    return [Job(algorithm, task.environment, {**own, "seed": seed}) for seed in seeds]


def smaller(algorithm: str, batch_size: int | None) -> dict[str, Any]:
    """What a method with batches of this size is given; PPO, whose batches are episodes, or None:
    nothing.
    """
    if batch_size is None or algorithm in ON_POLICY:
        return {}
    return {
        "batch_size": batch_size,
        **({"trust_region_batch_size": batch_size // 2} if algorithm.startswith("mamt") else {}),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = parser_of(__doc__, RESULTS, seeds=0)
    parser.set_defaults(seeds=None)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["spread", "rover_tower"])
    parser.add_argument(
        "--with", dest="more", nargs="+", choices=OTHERS, default=[], help="further methods"
    )
    parser.add_argument("--methods", nargs="+", help="only these of them")
    parser.add_argument("--episodes", type=int, help="length of training; default: the paper's")
    parser.add_argument(
        "--updates-per-step",
        type=int,
        help="updates every 100 environment steps; default: MAAC's 4",
    )
    parser.add_argument(
        "--batch-size", type=int, help="transitions of a batch, off policy; half for trust regions"
    )
    options = parser.parse_args(argv)
    settings = (
        {} if options.updates_per_step is None else {"updates_per_step": options.updates_per_step}
    )
    for name in options.tasks:
        task = TASKS[name]
        methods = task.methods | {
            label: alg for more in options.more for label, alg in OTHERS[more].items()
        }
        if options.methods:
            unknown = sorted(set(options.methods) - set(methods))
            if unknown:
                parser.error(f"unknown methods {unknown} of {name}, known: {list(methods)}")
            methods = {label: methods[label] for label in options.methods}
        seeds = range(1, (options.seeds or task.seeds) + 1)
        episodes = options.episodes or task.episodes
        cells = {
            name: {
                label: jobs_of(
                    task, alg, episodes, settings | smaller(alg, options.batch_size), seeds
                )
                for label, alg in methods.items()
            }
        }
        carry_out(cells, options, "return_mean", "Return, mean over agents", options.results / name)


if __name__ == "__main__":
    command(main)

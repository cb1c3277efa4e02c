"""F2A2-ISAC in MAgent's battle: learned opponents, learning against them, a larger battle (F2A2,
section 6.3).

`python -m experiments run battle` trains IQL in self-play, 12 agents a team, then F2A2-ISAC with 12
and with 64 agents against that policy, and lets what 64 agents have learned fight with 256 on each
side: `curves.png` and `final.md` of the learning, `transfer.md` of the larger battle. It is a
program and not a table of methods and tasks because runs name the folders of others. An interrupted
one goes on from the runs' checkpoints. Needs `requirements-magent.txt`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.document import markdown_table
from analysis.runs import Run, load_runs
from experiments import ROOT
from experiments.comparison import compare
from launch.jobs import Job, console, finished_runs
from launch.local import run_jobs

RESULTS = ROOT / "results" / "battle"
TIME_LIMIT = 400
SETTINGS = {
    "env_args.time_limit": TIME_LIMIT,
    "runner": "vector",
    "log_interval": 50000,
    "use_cuda": False,
    "buffer_dtype": "float16",
}
# One network that any number of agents can be played by; observations are large (845 numbers), so
# few episodes.
OPPONENTS = {
    "env_args.n_agents": 12,
    "env_args.opponents": "self",
    "common_reward": False,
    "share_params": True,
    "obs_agent_id": False,
    "batch_size_run": 4,
    "batch_size": 8,
    "buffer_size": 32,
    "updates_per_collection": 4,
    "gamma": 0.95,
    "epsilon_anneal_time": 200000,
    "test_nepisode": 4,
}
# Agents of a team -> what differs: the buffer and a batch hold about as many rows of single agents.
SIZES: dict[int, dict[str, Any]] = {
    12: {"buffer_size": 100, "batch_size": 64},
    64: {"buffer_size": 24, "batch_size": 16},
}
LARGE = 256
# What the table of the larger battle has of an evaluation.
FIGURES = (
    "test_battle_won_mean",
    "test_dead_enemies_mean",
    "test_dead_allies_mean",
    "test_return_mean",
)


def opponents_job(rounds: int) -> Job:
    """Self-play of IQL."""
    own = {"t_max": rounds * TIME_LIMIT, "test_interval": max(rounds * TIME_LIMIT // 4, 1)}
    return Job("iql", "battle", {**SETTINGS, **OPPONENTS, **own, "seed": 1})


def against(opponents: Path, n_agents: int) -> dict[str, Any]:
    """A battle against the policy of a run."""
    kind = {"env_args.opponents": "iql", "env_args.opponent_path": str(opponents)}
    return {**SETTINGS, **kind, "env_args.n_agents": n_agents, "batch_size_run": 4}


def jobs_of(opponents: Path, n_agents: int, steps: int, seeds: Sequence[int]) -> list[Job]:
    """F2A2-ISAC against them, one run per seed."""
    own = {
        **against(opponents, n_agents),
        **SIZES[n_agents],
        "steps_per_update": 100,
        "updates_per_step": 15,
        "t_max": steps,
        "save_model_interval": max(steps // 10, 1),
        "test_interval": max(steps // 10, 1),
        "test_nepisode": 8,
    }
    return [Job("f2a2_isac", "battle", {**own, "seed": seed}) for seed in seeds]


def transfer_job(opponents: Path, trained: Path, n_agents: int, own: int, episodes: int) -> Job:
    """An evaluation of the policies that `own` agents have learned, taken by `n_agents` by
    turns.
    """
    settings = {
        **against(opponents, n_agents),
        "batch_size_run": 1,
        "buffer_size": 1,
        "replay": "episodes",  # nothing is learned: a buffer of one episode is enough
        "batch_size": 1,
        "test_nepisode": episodes,
        "evaluate": True,
        "checkpoint_path": str(trained / "checkpoints"),
        "checkpoint_agents": own,
    }
    return Job("f2a2_isac", "battle", {**settings, "seed": 1})


def transfer_table(runs: Sequence[tuple[int, Run]]) -> str:
    """One row per evaluation: of how many agents the policy is, and what became of the battle."""
    head = [
        "agents in training",
        "in this battle",
        "run",
        "battles",
        "won",
        "enemies dead",
        "own dead",
        "return",
    ]
    rows = []
    for own, run in runs:
        won, *others = (float(run.metrics[name].values[-1]) for name in FIGURES)
        battles = len(run.episodes["test_returns"].values[-1])
        trained = Path(run.config["checkpoint_path"]).parent.name
        figures = [f"{100 * won:.0f} %", *(f"{value:.1f}" for value in others)]
        rows.append(
            [str(own), str(run.setting("env_args.n_agents")), trained, str(battles), *figures]
        )
    return "\n".join(markdown_table(head, rows)) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(argv)
    if options.report:
        opponents = opponents_job(options.rounds).finished_run(options.results)
        if opponents is None:
            console.print("no run is finished yet")
            return
    else:
        (opponents,) = run_jobs([opponents_job(options.rounds)], options.results, 1)
    jobs = {n: jobs_of(opponents, n, options.steps, options.seeds) for n in options.agents}
    everything = [job for own in zip(*jobs.values(), strict=True) for job in own]
    if not options.report:
        run_jobs(everything, options.results, options.jobs)
    compare_sizes(jobs, options.results)
    trained = [
        (n, run)
        for n, own in jobs.items()
        for job in own
        if (run := job.finished_run(options.results))
    ]
    larger = [(n, transfer_job(opponents, run, LARGE, n, options.episodes)) for n, run in trained]
    if options.episodes and not options.report:
        run_jobs([job for _, job in larger], options.results, options.jobs)
    compare_larger(larger, options.results)


def compare_sizes(jobs: Mapping[int, Sequence[Job]], results: Path) -> None:
    """Curves and final results of what has been learned, for every size that has a finished run."""
    there = finished_runs(results)
    done = {
        f"{n} against {n}": {"F2A2-ISAC": load_runs(found)}
        for n, own in jobs.items()
        if (found := [run.path for job in own if (run := job.find(there))])
    }
    if done:
        metric, words = "test_dead_enemies_mean", "Enemies killed in a test battle"
        console.print(compare(done, metric, results, words), markup=False, soft_wrap=True)


def compare_larger(larger: Sequence[tuple[int, Job]], results: Path) -> None:
    """The table of the larger battle, of the evaluations that are finished."""
    done = [(n, load_runs([run])[0]) for n, job in larger if (run := job.finished_run(results))]
    if done:
        table = transfer_table(done)
        (results / "transfer.md").write_text(table, encoding="utf-8")
        console.print(table, markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run per size each")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; 0: one per processor")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of runs and pictures")
    parser.add_argument("--report", action="store_true", help="only draw what is finished")
    parser.add_argument("--rounds", type=int, default=2000, help="episodes of self-play")
    parser.add_argument(
        "--steps", type=int, default=400000, help="environment steps of a run of F2A2-ISAC"
    )
    parser.add_argument(
        "--agents", type=int, nargs="+", choices=SIZES, default=list(SIZES), help="on each side"
    )
    parser.add_argument(
        "--episodes", type=int, default=8, help="battles of an evaluation with 256 agents; 0: none"
    )
    return parser

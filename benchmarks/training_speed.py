"""Whole training runs through the ordinary entry, environment steps/s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, Table

# name -> (environment, settings, steps per log, PyMARL2's steps/s). The first log after learning
# has begun starts the
# clock: the replay buffer must hold 128 episodes before the first update.
STAG_HUNT = (
    "env_args.n_predators=8",
    "env_args.n_prey=8",
    "env_args.grid_size=10",
    "env_args.episode_limit=200",
)
RUNS = {
    "matrix game (climbing), 1 step, 2 agents": (
        "matrix_game",
        ("env_args.map_name=climbing",),
        2000,
        6,
        700,
    ),
    "predator-prey, 100 steps, 2 agents": ("predator_prey", (), 12800, 3, 340),
    "predator-prey as large as a stag hunt, 200 steps, 8 agents": (
        "predator_prey",
        STAG_HUNT,
        25600,
        2,
        340,
    ),
}
# As PyMARL2's qmix.yaml: 8 environments, one update on 128 episodes per collection, Adam. Here the
# environments are batched in one process, and one thread learns: two gain little on such small
# networks and lose much on a busy machine.
COMMON = (
    "runner=vector", "batch_size_run=8", "batch_size=128", "learner_threads=1",
    "test_interval=100000000",
    "save_model=False", "seed=1",
)  # fmt: skip


def training_rate(env: str, settings: tuple[str, ...], log_interval: int, logs: int) -> float:
    """Steps/s between the first log and the last one but one; start-up and evaluation are outside.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as results:
        keys = {
            "t_max": (logs + 1) * log_interval, "log_interval": log_interval,
            "runner_log_interval": log_interval,
            "learner_log_interval": log_interval, "local_results_path": results,
        }  # fmt: skip
        command = [
            sys.executable,
            "src/main.py",
            "--config=qmix",
            f"--env-config={env}",
            "with",
            *COMMON,
            *settings,
        ]
        command += [f"{key}={value}" for key, value in keys.items()]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}"
            )
        (path,) = Path(results).rglob("timing.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = [
        (line["t"], line["value"]) for line in lines if line["key"] == "seconds" and line["t"] > 0
    ]
    (t0, s0), (t1, s1) = seconds[0], seconds[-2]
    return (t1 - t0) / (s1 - s0)


def run(quick: bool) -> list[Table]:
    """Steps/s of each run."""
    table = Table(
        "training",
        "Training, QMIX, 8 environments, batches of 128 episodes, steps/s while learning",
        ("task", "steps/s", "target", "PyMARL2"),
        note="PyMARL2's figures (its matrix game and stag hunt) were measured elsewhere, on a "
        "2-core x86 machine.",
    )
    for name, (env, settings, interval, logs, pymarl2) in RUNS.items():
        if quick and logs < 6:
            continue
        rate = training_rate(env, settings, interval, logs)
        table.add(name, f"{rate:,.0f}", f">= {3 * pymarl2:,}", f"{pymarl2:,}")
    return [table]

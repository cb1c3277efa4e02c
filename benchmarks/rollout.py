"""What collecting episodes costs beside the environment: the three runners, and a PyMARL2-style
loop.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from benchmarks.common import EPISODE_LIMIT, NoLog, Table, in_turn, make_args
from benchmarks.dummy_envs import SINGLE, VECTOR, SingleDummy
from benchmarks.reference import Controller, run_episode

from assembly import build_mac, scheme_of
from runners import REGISTRY as RUNNERS
from utils.memory import keep_freed_memory

# runner -> environment, how many of them, PyMARL2's steps/s on a 2-core x86 machine, at least
RUNS = {
    "episode": (SINGLE, 1, "1,700", 1.5 * 1700),
    "parallel": (SINGLE, 8, "3,200", 1.5 * 3200),
    "vector": (VECTOR, 64, "-", 20000),
}


def make_runner(name: str) -> Any:
    """A runner on the dummy environment, QMIX's controller acting."""
    env, n_envs, *_ = RUNS[name]
    args = make_args(runner=name, batch_size_run=n_envs, env=env, test_nepisode=n_envs)
    runner = RUNNERS[name](args, NoLog())
    runner.setup(*scheme_of(args), build_mac(args))
    return runner


def steps_per_second(runner: Any, seconds: float) -> list[float]:
    """Rates of whole collections."""
    runner.run()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        before, start = runner.t_env, time.perf_counter()
        runner.run()
        rates.append((runner.t_env - before) / (time.perf_counter() - start))
    return rates


def run(quick: bool) -> list[Table]:
    """Steps/s of the runners, and the episode runner in turn with the PyMARL2-style loop."""
    keep_freed_memory()
    torch.set_num_threads(1)
    table = Table(
        "rollout",
        f"Rollout, dummy environment, {EPISODE_LIMIT} steps per episode, environment steps/s",
        (
            "runner",
            "environments",
            "median",
            "quartiles",
            "target",
            "PyMARL2",
            "time in environment / acting",
        ),
        note="PyMARL2's figures were measured elsewhere, on a 2-core x86 machine.",
    )
    for name, (_, n_envs, pymarl2, target) in RUNS.items():
        runner = make_runner(name)
        try:
            rates = steps_per_second(runner, 1 if quick else 8)
            low, high = np.quantile(rates, [0.25, 0.75])
            shares = np.array(list(runner.seconds.values())) / sum(runner.seconds.values())
        finally:
            runner.close_env()
        table.add(
            name, n_envs, f"{statistics.median(rates):,.0f}", f"{low:,.0f} - {high:,.0f}",
            f">= {target:,.0f}", pymarl2,
            " / ".join(f"{share:.0%}" for share in shares),
        )  # fmt: skip
    return [table, _against_stepping(quick)]


def _against_stepping(quick: bool) -> Table:
    args, env = make_args(), SingleDummy(0)
    mac, runner = Controller(args), make_runner("episode")
    result = in_turn(
        lambda: runner.run, lambda: lambda: run_episode(env, mac, args), 5 if quick else 25
    )
    runner.close_env()
    table = Table(
        "rollout_ratio",
        "Rollout, one environment, in turn with a PyMARL2-style loop",
        ("loop", "episode [ms]", "steps/s", "ours / PyMARL2-style", "target"),
    )
    rate = EPISODE_LIMIT * 1000
    table.add(
        "episode runner", f"{result.ours:.1f}", f"{rate / result.ours:,.0f}", result, "<= 0.67"
    )
    table.add("PyMARL2-style", f"{result.theirs:.1f}", f"{rate / result.theirs:,.0f}", "", "")
    return table

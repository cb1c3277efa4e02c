"""What collecting episodes costs beside the environment: the three runners, and PyMARL2-style loops for comparison."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.common import NoLog, make_args, make_mac, make_scheme
from benchmarks.dummy_envs import SINGLE, VECTOR
from runners import REGISTRY as RUNNERS


def make_runner(name: str, env: str, n_envs: int):
    args = make_args(runner=name, batch_size_run=n_envs, env=env, env_args={}, plugins=[], test_nepisode=n_envs)
    runner = RUNNERS[name](args, NoLog())
    runner.setup(*make_scheme(args), make_mac(args))
    return runner


def steps_per_second(runner, seconds: float) -> float:
    """Median over collections."""
    torch.set_num_threads(1)
    runner.run()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        before, start = runner.t_env, time.perf_counter()
        runner.run()
        rates.append((runner.t_env - before) / (time.perf_counter() - start))
    return statistics.median(rates)

"""Steps per second of Level-Based Foraging and the multi-robot warehouse, beside their packages."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings

import numpy as np
from benchmarks.common import Table

from envs import make_vector_env

N_ENVS = 64
FACTOR = 20  # what a batched implementation must reach
REPETITIONS = 3
PACKAGES = {"lbf": "lbforaging", "rware": "rware"}
# environment, task -> the package's name of it
TASKS = {
    ("lbf", "8x8-2p-2f-coop"): "Foraging-8x8-2p-2f-coop-v3",
    ("lbf", "2s-10x10-3p-3f"): "Foraging-2s-10x10-3p-3f-v3",
    ("lbf", "15x15-4p-4f"): "Foraging-15x15-4p-4f-v3",
    ("rware", "tiny-2ag"): "rware-tiny-2ag-v2",
    ("rware", "small-4ag"): "rware-small-4ag-v2",
    ("rware", "medium-6ag-hard"): "rware-medium-6ag-hard-v2",
}


def steps_per_second(name: str, map_name: str, n_envs: int, seconds: float) -> float:
    """Random actions, drawn before; episodes begin anew as they end, which counts."""
    env = make_vector_env(name, {"map_name": map_name}, n_envs, 0, "native", "train_env")
    rng = np.random.default_rng(0)
    actions = rng.integers(0, env.n_actions, (1000, n_envs, env.n_agents))
    env.reset()
    env.step(actions[0])
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        ended = env.terminated | env.truncated
        if ended.any():
            env.reset(ended)
        env.step(actions[steps % len(actions)])
        steps += 1
    rate = n_envs * steps / (time.perf_counter() - start)
    env.close()
    return rate


def steps_per_second_of_package(package: str, task: str, seconds: float) -> float:
    """The same for one environment of the package, without Gymnasium's wrappers."""
    importlib.import_module(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = importlib.import_module("gymnasium").make(task).unwrapped
    n_agents, n_actions = env.n_agents, env.action_space[0].n
    actions = np.random.default_rng(0).integers(0, n_actions, (1000, n_agents)).tolist()
    env.reset(seed=0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        *_, ended, _, _ = env.step(actions[steps % len(actions)])
        steps += 1
        if ended:
            env.reset()
    return steps / (time.perf_counter() - start)


def run(quick: bool) -> list[Table]:
    """Environment steps/s, in turn with the packages' where they are installed."""
    seconds = 0.1 if quick else 2.0
    table = Table(
        "grid_worlds",
        "lbf and rware, environment steps/s in one process and one thread, random actions",
        ("task", "B = 1", f"B = {N_ENVS}", "package", f"B = {N_ENVS} / package", "target"),
        note=f"Medians of {REPETITIONS}, in turn with lbforaging and rware where these packages "
        "are installed.",
    )
    for (name, map_name), task in list(TASKS.items())[:: 3 if quick else 1]:
        installed = importlib.util.find_spec(PACKAGES[name]) is not None
        rates: list[list[float]] = [[], [], []]
        for _ in range(REPETITIONS):
            rates[0].append(steps_per_second(name, map_name, 1, seconds))
            rates[1].append(steps_per_second(name, map_name, N_ENVS, seconds))
            if installed:
                rates[2].append(steps_per_second_of_package(PACKAGES[name], task, seconds))
        one, many = np.median(rates[0]), np.median(rates[1])
        package = np.median(rates[2]) if installed else None
        table.add(
            *(f"{name} {map_name}", f"{one:,.0f}", f"{many:,.0f}"),
            *((f"{package:,.0f}", f"{many / package:.0f}") if installed else ("-", "-")),
            f">= {FACTOR}",
        )
    return [table]

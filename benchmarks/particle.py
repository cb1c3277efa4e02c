"""Steps per second of the particle environments, one world and many, beside the originals."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np
from benchmarks.common import Table

from envs import make_vector_env

N_ENVS = (1, 64, 1024)
FACTOR = 20  # what a batched implementation must reach
# environment -> steps/s of the original environments, measured elsewhere in one process on 2 slow
# x86 cores
MEASURED_ELSEWHERE = {"rover_tower": 7700, "treasure_collection": 1200}
# environment -> the nearest thing in the mpe2 package (requirements-pettingzoo.txt), measured here
MPE2 = {
    "spread": ("simple_spread_v3", {"N": 2, "max_cycles": 25}),
    "treasure_collection": ("collect_treasure_v1", {"max_cycles": 100}),
}


def steps_per_second(name: str, n_envs: int, seconds: float) -> float:
    """Random actions, drawn before; starts of episodes count."""
    env = make_vector_env(name, {}, n_envs, 0, "native", "train_env")
    actions = np.random.default_rng(0).integers(
        0, env.n_actions, (env.episode_limit, n_envs, env.n_agents)
    )
    rates = []
    # the first episode compiles
    for repetition in range(4):
        steps, start = 0, time.perf_counter()
        while steps == 0 or (repetition > 0 and time.perf_counter() - start < seconds):
            env.reset()
            for action in actions:
                env.step(action)
            steps += n_envs * len(actions)
        rates.append(steps / (time.perf_counter() - start))
    env.close()
    return float(np.median(rates[1:]))


def steps_per_second_of_mpe2(module: str, kwargs: dict[str, Any], seconds: float) -> float:
    """An environment of the mpe2 package, one world, random actions."""
    original = importlib.import_module(f"mpe2.{module}").parallel_env(**kwargs)
    rng = np.random.default_rng(0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        original.reset(seed=steps)
        while original.agents:
            original.step({agent: int(rng.integers(5)) for agent in original.agents})
            steps += 1
    return steps / (time.perf_counter() - start)


def run(quick: bool) -> list[Table]:
    """Environment steps/s of all three environments."""
    seconds = 0.1 if quick else 1.0
    table = Table(
        "particle",
        "Particle environments, environment steps/s in one process, random actions",
        ("environment", *(f"B = {n}" for n in N_ENVS), "mpe2 here", "original elsewhere", "target"),
        note="Spread with 2 agents, the others with 8. Originals: one world, measured on a 2-core "
        "x86 machine. mpe2 "
        f"has no Rover-Tower. Target: {FACTOR} times the original (Spread: mpe2) with many worlds.",
    )
    for name in ("spread", "rover_tower", "treasure_collection"):
        rates = [steps_per_second(name, n_envs, seconds) for n_envs in N_ENVS]
        mpe2 = steps_per_second_of_mpe2(*MPE2[name], 3 * seconds) if name in MPE2 else None
        elsewhere = MEASURED_ELSEWHERE.get(name)
        target = FACTOR * (elsewhere or mpe2)
        cells = [f"{one:,.0f}" if one else "-" for one in (*rates, mpe2, elsewhere)]
        table.add(name, *cells, f">= {target:,.0f}")
    return [table]

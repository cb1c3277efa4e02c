"""Steps per second of the StarCraft simulator, beside SMAX where it is installed, and the
interface's own cost.
"""

from __future__ import annotations

import importlib.util
import os
import time

import numpy as np
import torch
from benchmarks.common import Table, median_seconds

from components.action_selectors import random_actions
from envs import make_vector_env
from envs.starcraft.battle import Battle
from envs.starcraft.facts import map_info
from envs.starcraft.interface import Interface, Options
from envs.starcraft.sim.engine import Engine

N_ENVS = 64
MAPS = {"3m": 100000, "8m": None, "2s3z": None, "6h_vs_8z": 30000, "27m_vs_30m": None}
SMAX_FACTOR = 10
LARGE = "27m_vs_30m"


def steps_per_second(map_name: str, threads: int, steps: int) -> float:
    """Random available actions at 64 battles; the time of `reset` and `step` alone, observations
    and state included.
    """
    env = make_vector_env(
        "sc2sim", {"map_name": map_name, "threads": threads}, N_ENVS, 0, "native", "train_env"
    )
    torch.manual_seed(0)
    env.reset()
    taken = 0.0
    for t in range(steps + 20):
        actions = random_actions(torch.from_numpy(env.avail_actions)).numpy()
        start = time.perf_counter()
        env.step(actions)
        ended = env.terminated | env.truncated
        if ended.any():
            env.reset(ended)
        if t >= 20:
            taken += time.perf_counter() - start
    env.close()
    return N_ENVS * steps / taken


def smax_steps_per_second(map_name: str, steps: int) -> float:
    """The same for SMAX with its own enemies, jitted and mapped over 64 battles, random available
    actions included.
    """
    import jax
    import jax.numpy as jnp
    from jaxmarl import make
    from jaxmarl.environments.smax import map_name_to_scenario

    env = make("HeuristicEnemySMAX", scenario=map_name_to_scenario(map_name))

    def step(carry, key):
        states = carry
        avail = jax.vmap(env.get_avail_actions)(states)
        keys = jax.random.split(key, len(env.agents) + 1)
        actions = {
            agent: jax.random.categorical(k, jnp.where(avail[agent], 0.0, -1e9))
            for agent, k in zip(env.agents, keys[1:], strict=True)
        }
        obs, states, rewards, _, _ = jax.vmap(env.step)(
            jax.random.split(keys[0], N_ENVS), states, actions
        )
        # what a learner reads must not be optimised away
        return states, sum(x.sum() for x in (*obs.values(), *rewards.values()))

    @jax.jit
    def many(states, key):
        return jax.lax.scan(step, states, jax.random.split(key, steps))

    _, states = jax.vmap(env.reset)(jax.random.split(jax.random.PRNGKey(0), N_ENVS))
    jax.block_until_ready(many(states, jax.random.PRNGKey(1)))
    start = time.perf_counter()
    jax.block_until_ready(many(states, jax.random.PRNGKey(2)))
    return N_ENVS * steps / (time.perf_counter() - start)


def rollout(quick: bool) -> Table:
    """Simulator and SMAX."""
    smax = importlib.util.find_spec("jaxmarl") is not None
    threads = min(2, len(os.sched_getaffinity(0)))
    table = Table(
        "starcraft",
        f"StarCraft simulator, {N_ENVS} battles, random available actions, observations and state "
        "included [steps/s]",
        (
            "map",
            "one thread",
            "target",
            f"{threads} threads",
            "SMAX",
            "one thread / SMAX",
            "target",
        ),
        note=(
            "Time inside reset and step; medians of 3. SMAX (package jaxmarl) runs jitted with "
            "all processors that "
        )
        + ("JAX takes." if smax else "JAX takes: not installed here."),
    )
    steps = 100 if quick else 1500
    for name, target in list(MAPS.items())[: 1 if quick else None]:
        wanted = steps if name != LARGE else steps // 5
        one, two = (
            np.median([steps_per_second(name, n, wanted) for _ in range(3)]) for n in (1, threads)
        )
        other = smax_steps_per_second(name, wanted // 5) if smax else None
        table.add(
            *(name, f"{one:,.0f}", f">= {target:,}" if target else "-", f"{two:,.0f}"),
            *(
                (f"{other:,.0f}", f"{one / other:.1f}", f">= {SMAX_FACTOR}")
                if other
                else ("-", "-", "-")
            ),
        )
    return table


def interface(quick: bool) -> Table:
    """What the real game pays for observation, state and availability."""
    info = map_info(LARGE)
    engine = Engine(info, 1)
    battle: Battle = engine.battle
    smac = Interface(info, battle, Options())
    one = np.ones(1, dtype=bool)
    engine.reset(one, [np.random.default_rng(0)])
    smac.begin(one)
    obs = np.zeros((1, info.n_agents, smac.obs_size), dtype=np.float32)
    state = np.zeros((1, smac.state_size), dtype=np.float32)
    avail = np.zeros((1, info.n_agents, smac.n_actions), dtype=np.uint8)
    seconds = median_seconds(
        lambda: smac.observe(one, obs, state, avail), 20 if quick else 500, warm_up=3
    )
    engine.close()
    table = Table(
        "starcraft_interface", f"SMAC's interface, one battle of {LARGE}", ("time [ms]", "target")
    )
    table.add(f"{1000 * seconds:.3f}", "<= 1")
    return table


def run(quick: bool) -> list[Table]:
    """Both tables."""
    return [rollout(quick), interface(quick)]

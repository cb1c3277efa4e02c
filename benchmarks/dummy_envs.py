"""Environments that do next to nothing in the shapes of SMAC's map 6h_vs_8z: what is timed is what
surrounds them.

`benchmark_single` has PyMARL's interface, `benchmark_vector` is its natively batched twin. Every
episode lasts `episode_limit` steps; observations are drawn once and then stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmarks.common import EPISODE_LIMIT, N_ACTIONS, N_AGENTS, OBS, STATE

from envs import REGISTRY, VECTOR_REGISTRY, register, register_vector
from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec, VectorEnv

SINGLE, VECTOR = "benchmark_single", "benchmark_vector"


class SingleDummy(MultiAgentEnv):
    """Answers with arrays and lists that it has made once, as cheaply as PyMARL's interface
    allows.
    """

    def __init__(self, seed: int, episode_limit: int = EPISODE_LIMIT) -> None:
        rng = np.random.default_rng(seed)
        self.n_agents, self.n_actions, self.episode_limit = N_AGENTS, N_ACTIONS, episode_limit
        self.obs = list(rng.standard_normal((N_AGENTS, OBS), dtype=np.float32))
        self.state = rng.standard_normal(STATE, dtype=np.float32)
        self.avail_actions = [[1] * N_ACTIONS for _ in range(N_AGENTS)]
        self.t = 0

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        self.t = 0
        return self.obs, self.state

    def step(self, actions: Any) -> tuple[float, bool, dict[str, Any]]:
        self.t += 1
        ended = self.t >= self.episode_limit
        info = {"battle_won": False, "dead_allies": 0, "dead_enemies": 0}
        return 1.0, ended, {**info, "episode_limit": True} if ended else info

    def get_obs(self) -> list[np.ndarray]:
        return self.obs

    def get_obs_size(self) -> int:
        return OBS

    def get_state(self) -> np.ndarray:
        return self.state

    def get_state_size(self) -> int:
        return STATE

    def get_avail_actions(self) -> list[list[int]]:
        return self.avail_actions

    def get_total_actions(self) -> int:
        return self.n_actions

    def close(self) -> None:
        pass


class VectorDummy(VectorEnv):
    """The same, natively batched."""

    def __init__(self, n_envs: int, seed: int, episode_limit: int = EPISODE_LIMIT) -> None:
        spec = EnvSpec(N_AGENTS, N_ACTIONS, OBS, STATE, episode_limit)
        super().__init__(
            n_envs, spec, seed, info_keys=("battle_won", "dead_allies", "dead_enemies")
        )
        rng = np.random.default_rng(seed)
        self.obs[:] = rng.standard_normal(self.obs.shape, dtype=np.float32)
        self.state[:] = rng.standard_normal(self.state.shape, dtype=np.float32)
        self.avail_actions[:] = 1
        self._t = np.zeros(n_envs, dtype=np.int64)

    def _reset(self, mask: np.ndarray) -> None:
        self._t[mask] = 0
        for values in self.info.values():
            values[mask] = 0.0

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        self._t[mask] += 1
        self.reward[mask] = 1.0
        self.truncated[mask] = self._t[mask] >= self.episode_limit


# Worker processes import this module by its name to find `SingleDummy`; there it may be registered
# already.
if SINGLE not in REGISTRY:
    register(SINGLE)(SingleDummy)
if VECTOR not in VECTOR_REGISTRY:
    register_vector(VECTOR)(VectorDummy)

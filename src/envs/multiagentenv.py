"""PyMARL's interface of one cooperative multi-agent environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from envs.words import Words
from utils.ranges import Range

Actions = Sequence[int] | np.ndarray  # A indices, or [A, U] if they are continuous
Reward = float | Sequence[float] | np.ndarray  # the team's, or A of them
Avail = Sequence[int] | np.ndarray  # U zeros and ones


class MultiAgentEnv:
    """One environment with A agents that act at the same time.

    A subclass sets `n_agents` and `episode_limit` (the longest episode in steps) and overrides what
    it can do; everything else raises `NotImplementedError`. It is constructed with the entries of
    `env_args` as keywords, `seed` among them.

    Individual sizes: agents whose observations or action sets are smaller than the largest say so
    by adding `obs_sizes` and `action_sizes` (A ints each) to `get_env_info()`; their lists may then
    be shorter, or padded already. Individual rewards: add `individual_rewards: True`; `step` then
    returns A rewards. Continuous actions: add `continuous_actions: True`; U is then the number of
    entries of the longest action, `step` takes float32 [A, U] from -1 to 1 (padded), and all of an
    agent's own entries are available.
    """

    n_agents: int
    episode_limit: int
    # what entries of `env_args` must be, entries of mappings by dotted key; `make_vector_env` and
    # constructors check it
    ranges: ClassVar[Mapping[str, Range]] = {}

    def step(self, actions: Actions) -> tuple[Reward, bool, dict[str, Any]]:
        """Takes one action per agent.

        Args:
            actions: A action indices, or float32 [A, U] (continuous actions).

        Returns:
            reward (one number, or A of them), whether the episode is over, info.
            `info["episode_limit"]` true: the episode was cut by the time limit; `info["env_error"]`
            true: the environment broke, the episode is void.
        """
        raise NotImplementedError

    def get_obs(self) -> list[np.ndarray]:
        """The observations of all agents, A arrays of [O]."""
        return [self.get_obs_agent(agent_id) for agent_id in range(self.n_agents)]

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        """The observation of one agent, [O]."""
        raise NotImplementedError

    def get_obs_size(self) -> int:
        """O, the entries of the largest observation."""
        raise NotImplementedError

    def get_state(self) -> np.ndarray:
        """The global state, [S]."""
        raise NotImplementedError

    def get_state_size(self) -> int:
        """S, the entries of the state."""
        raise NotImplementedError

    def get_avail_actions(self) -> Sequence[Avail]:
        """For each agent its U zeros and ones: which actions it may take now."""
        return [self.get_avail_agent_actions(agent_id) for agent_id in range(self.n_agents)]

    def get_avail_agent_actions(self, agent_id: int) -> Avail:
        """U zeros and ones: which actions this agent may take now."""
        raise NotImplementedError

    def get_total_actions(self) -> int:
        """U, the number of actions of the agent that has most."""
        raise NotImplementedError

    def reset(self) -> Any:
        """Starts a new episode. What it returns is up to the environment; the backends do not read
        it.
        """
        raise NotImplementedError

    def render(self) -> np.ndarray | None:
        """The current picture, uint8 [H, W, 3]; None where the environment draws into a window of
        its own.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Frees what the environment holds. May be called twice."""

    def seed(self, seed: int) -> None:
        """Restarts the random stream, as if the environment had been constructed with this seed."""
        raise NotImplementedError

    def save_replay(self) -> None:
        """Writes a replay of the last episode."""
        raise NotImplementedError

    def get_env_info(self) -> dict[str, Any]:
        """Sizes that the networks and buffers are built from."""
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.get_total_actions(),
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def words(self) -> Words | None:
        """Names of agents, actions and entries of observations; None where there are only
        numbers.
        """
        return None

    def get_stats(self) -> dict[str, float]:
        """Figures over all episodes so far; empty where the environment keeps none."""
        return {}

    def set_t_env(self, t_env: int) -> None:
        """Tells the training step before an episode, for tasks that change in the course of
        training.
        """

    def get_rng_state(self) -> dict[str, Any] | None:
        """The random state between two episodes as plain Python values, or None where it cannot be
        had.
        """
        return None

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_rng_state`.

        Raises:
            NotImplementedError: this environment cannot restore its random state.
        """
        raise NotImplementedError


class ArrayEnv(MultiAgentEnv):
    """An environment that keeps what its agents see in arrays: a subclass says which, the getters
    give copies.
    """

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations [A, O], state [S] and available actions [A, U], as they are now."""
        raise NotImplementedError

    def get_obs(self) -> list[np.ndarray]:
        return list(self.arrays()[0].copy())

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        return self.arrays()[0][agent_id].copy()

    def get_obs_size(self) -> int:
        return self.arrays()[0].shape[1]

    def get_state(self) -> np.ndarray:
        return self.arrays()[1].copy()

    def get_state_size(self) -> int:
        return self.arrays()[1].size

    def get_avail_actions(self) -> list[np.ndarray]:
        return list(self.arrays()[2].copy())

    def get_avail_agent_actions(self, agent_id: int) -> np.ndarray:
        return self.arrays()[2][agent_id].copy()

    def get_total_actions(self) -> int:
        return self.arrays()[2].shape[1]


class HostedEnv(ArrayEnv):
    """An environment of another package, `env`: every reset gives it a seed drawn from a Generator
    of our own, `_rng`, whose state is all there is to save.
    """

    env: Any
    _rng: np.random.Generator
    _closed = False

    def seed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def get_rng_state(self) -> dict[str, Any]:
        return {"rng": self._rng.bit_generator.state}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()

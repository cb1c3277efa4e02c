"""What the particle environments share beside their compiled code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.particle.drawing import Canvas
from envs.vector_env import EnvSpec, VectorEnv


def acceleration_of(value: float) -> float:
    """What a move gives to a body with the acceleration `value` of its own: the original applies it
    twice.
    """
    return value * value


class ParticleEnv(VectorEnv):
    """B worlds of one scenario; every episode is cut after `episode_limit` steps, nothing else ends
    one.

    A subclass implements `_start(rows)` and `_advance(rows, actions)`: both write obs and state,
    the second one also `_rewards`; and `_draw(index, canvas)`. All that is random in an episode
    comes from one draw at its start.

    Args:
        n_envs, spec, seed: see `VectorEnv`; `spec.individual_rewards` False: the reward is the sum
            over the agents.
        counts: the keys of `info`: figures of the episode so far, zero at its start, columns of
            `_counts`.
        n_draws: uniform numbers in [0, 1) of an episode, `_draws` [B, n_draws].
    """

    def __init__(
        self, n_envs: int, spec: EnvSpec, seed: int, counts: Sequence[str], n_draws: int
    ) -> None:
        self._time = np.zeros(n_envs, dtype=np.int64)
        self._every_row = np.arange(n_envs)
        self._draws = np.zeros((n_envs, n_draws))
        self._rewards = np.zeros((n_envs, spec.n_agents))
        self._counts = np.zeros((len(counts), n_envs))
        super().__init__(n_envs, spec, seed)
        self.info = dict(zip(counts, self._counts, strict=True))
        for agent, size in enumerate(spec.action_sizes):
            self.avail_actions[:, agent, :size] = 1

    def _start(self, rows: np.ndarray) -> None:
        """Begins episodes from `_draws` in `rows` (int64 [R]); writes obs and state there."""
        raise NotImplementedError

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> None:
        """One step of `rows` (int64 [R]) by `actions` (int64 [B, A]); writes obs, state, `_rewards`
        and `_counts`.
        """
        raise NotImplementedError

    def _draw(self, index: int, canvas: Canvas) -> None:
        """Draws world `index`."""
        raise NotImplementedError

    def _reset(self, mask: np.ndarray) -> None:
        rows = np.flatnonzero(mask)
        for b in rows:
            self.rngs[b].random(out=self._draws[b])
        self._time[rows] = 0
        self._counts[:, rows] = 0.0
        self._start(rows)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        everyone = mask.all()
        rows = self._every_row if everyone else np.flatnonzero(mask)
        # a slice is several times as fast as an index array and means the same
        where = slice(None) if everyone else rows
        self._advance(rows, np.ascontiguousarray(actions))
        self._time[where] += 1
        rewards = self._rewards[where]
        self.reward[where] = rewards if self.individual_rewards else rewards.sum(axis=1)
        self.truncated[where] = self._time[where] >= self.episode_limit

    def render(self, index: int = 0) -> np.ndarray:
        """A fixed square of the plane, uint8 [H, W, 3]; y grows upwards. Bodies beyond it are
        hollow, at its edge.
        """
        canvas = Canvas()
        self._draw(index, canvas)
        return canvas.picture()


def unit_to_square(draws: np.ndarray, half_width: float = 1.0) -> np.ndarray:
    """Uniform numbers [..., 2N] in [0, 1) as points [..., N, 2] in the square of this half
    width.
    """
    return half_width * (2.0 * draws.reshape(*draws.shape[:-1], draws.shape[-1] // 2, 2) - 1.0)

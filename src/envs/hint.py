"""Hint: one agent sees what the others have to do, and can only tell them."""

from __future__ import annotations

import numpy as np

from envs.ranges import SIZE, whole
from envs.vector_env import EnvSpec, VectorEnv
from utils.ranges import check_ranges

GOAL = (90, 170, 110)
CHOICE = (40, 60, 200)


class Hint(VectorEnv):
    """B games of a guide (agent 0) and `n_actors` actors at once.

    At every step each actor has a goal of its own among `n_goals`, drawn anew and uniformly. The
    guide sees all goals and has nothing to choose (its one available action is 0); the actors see
    nothing and choose a goal each. Reward: the share of actors that chose their goal. Without
    messages nothing that an actor knows depends on its goal, so that the expected return of every
    policy is `episode_limit / n_goals`; with them it can be `episode_limit`. Episodes end by time
    only.

    Observation of the guide and state: the one-hot goal of every actor, side by side. Observation
    of an actor: zeros. `info`: `hits`, the share of goals that were chosen in the episode so far.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        n_actors: A - 1.
        n_goals: U, at least 2.
        episode_limit: steps.

    Raises:
        ConfigError: a value out of range.
    """

    ranges = {"n_actors": SIZE, "n_goals": whole(2), "episode_limit": SIZE}

    def __init__(
        self, n_envs: int, seed: int, n_actors: int = 2, n_goals: int = 4, episode_limit: int = 5
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        # All goals of an episode are drawn at its start; those after its end are shown at last.
        self.goals = np.zeros((n_envs, episode_limit + 1, n_actors), dtype=np.int64)
        self._choices = np.full((n_envs, n_actors), -1)
        self._time = np.zeros(n_envs, dtype=np.int64)
        self._hits = np.zeros(n_envs)
        self._one_hot = np.eye(n_goals, dtype=np.float32)
        size = n_actors * n_goals
        spec = EnvSpec(
            n_agents=n_actors + 1,
            n_actions=n_goals,
            obs_size=size,
            state_size=size,
            episode_limit=episode_limit,
        )
        super().__init__(n_envs, spec, seed, info_keys=("hits",))
        self.avail_actions[:, 1:] = 1
        self.avail_actions[:, 0, 0] = 1

    def _reset(self, mask: np.ndarray) -> None:
        for b in np.flatnonzero(mask):
            self.goals[b] = self.rngs[b].integers(self.n_actions, size=self.goals.shape[1:])
        self._time[mask] = 0
        self._hits[mask] = 0
        self._choices[mask] = -1
        self._observe(np.flatnonzero(mask))

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        rows = np.flatnonzero(mask)
        self._choices[rows] = actions[rows, 1:]
        right = (self._choices[rows] == self.goals[rows, self._time[rows]]).mean(axis=1)
        self._time[rows] += 1
        self._hits[rows] += right
        self.reward[rows] = right
        self.info["hits"][rows] = self._hits[rows] / self._time[rows]
        self.truncated[rows] = self._time[rows] >= self.episode_limit
        self._observe(rows)

    def _observe(self, rows: np.ndarray) -> None:
        shown = self._one_hot[self.goals[rows, self._time[rows]]].reshape(
            len(rows), self.state_size
        )
        self.state[rows] = shown
        self.obs[rows, 0] = shown

    def render(self, index: int = 0) -> np.ndarray:
        """One row of goals for each actor, uint8 [H, W, 3]: its last choice is a blue disc, what
        was its goal then is green; before the first choice its present goal.
        """
        from envs.grid_canvas import GridCanvas

        n_actors = self.n_agents - 1
        canvas = GridCanvas(n_actors, self.n_actions)
        for actor, goal in enumerate(self.goals[index, max(self._time[index] - 1, 0)]):
            canvas.square(actor, int(goal), 0.5, GOAL)
        for actor, choice in enumerate(self._choices[index]):
            if choice >= 0:
                canvas.disc(actor, int(choice), 0.25, CHOICE)
        return canvas.picture()

"""Switching Wind: one agent on a line in a wind that changes (DAC, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from envs.ranges import SIZE, whole
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words, every, grouped
from utils.ranges import Range, check_ranges, one_of

# mean and standard deviation of the wind: calm, headwind, tailwind
DAC_WINDS = ((0.0, 0.1), (-1.5, 0.3), (1.5, 0.3))
MODE_ORDERS = ("shuffled", "fixed")


def _are_winds(value: object) -> bool:
    """Whether `value` is a list of [mean, std]."""
    try:
        table = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return False
    shaped = table.ndim == 2 and table.shape[1] == 2
    return bool(shaped and np.isfinite(table).all() and (table[:, 1] >= 0).all())


class SwitchingWind(VectorEnv):
    """B walks at once: s' = s + a + e with a in [-1, 1] and wind e ~ N(mean, std) of the current
    mode. One agent.

    The mode changes every `switch_every` steps. The paper does not say in which order: "shuffled"
    draws an order of all modes for each episode (every mode occurs once in DAC's 60 steps, none
    follows itself), "fixed" takes the order of `winds`; a longer episode runs through the same
    order again.

    Actions: index j of `n_actions` is the j-th of evenly spaced values from -1 to 1;
    `step_continuous` takes the values themselves. Observation and state: the position, which starts
    at 0. Reward: minus the distance from 0 after the step (the paper trains no policy here; staying
    near the start is what the wind prevents). Episodes end by time only. `info`: `mode`, the index
    in `winds` of the wind that blew in the last step.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        n_actions: U, at least 2.
        episode_limit: steps.
        switch_every: steps between two changes of the mode.
        winds: [mean, std] of every mode.
        mode_order: "shuffled" or "fixed".

    Raises:
        ConfigError: a value out of range.
    """

    ranges = {
        "n_actions": whole(2),
        "episode_limit": SIZE,
        "switch_every": SIZE,
        "winds": Range(_are_winds, "a list of [mean, std >= 0]"),
        "mode_order": one_of(*MODE_ORDERS),
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        n_actions: int = 5,
        episode_limit: int = 60,
        switch_every: int = 20,
        winds: Sequence[Sequence[float]] = DAC_WINDS,
        mode_order: str = "shuffled",
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.winds = np.array(winds, dtype=np.float64)
        self.action_values = np.linspace(-1.0, 1.0, n_actions)
        self.mode_order = mode_order
        # which place of an episode's order of modes is in force at each step
        self._place = (np.arange(episode_limit) // switch_every) % len(self.winds)
        # all that is random in an episode is drawn at its start
        self.modes = np.zeros((n_envs, episode_limit), dtype=np.int64)
        self._wind = np.zeros((n_envs, episode_limit))
        self.positions = np.zeros((n_envs, episode_limit + 1))
        self._time = np.zeros(n_envs, dtype=np.int64)
        spec = EnvSpec(
            n_agents=1, n_actions=n_actions, obs_size=1, state_size=1, episode_limit=episode_limit
        )
        super().__init__(n_envs, spec, seed, info_keys=("mode",))
        self.avail_actions[:] = 1

    def step_continuous(self, actions: np.ndarray, mask: np.ndarray | None = None) -> None:
        """`step` with the movements themselves.

        Args:
            actions: float [B, A] in [-1, 1]; rows outside of `mask` are not looked at.
            mask: bool [B], which environments to step; default all.

        Raises:
            ValueError: a movement out of range, a wrong shape, an environment whose episode is
                over.
        """
        mask = self._as_mask(mask)
        moves = np.asarray(actions, dtype=np.float64)
        if moves.shape != (self.n_envs, self.n_agents):
            raise ValueError(
                f"actions have shape {list(moves.shape)}, must be [{self.n_envs}, {self.n_agents}]"
            )
        if (mask & ~self._running).any():
            idle = np.flatnonzero(mask & ~self._running).tolist()
            raise ValueError(
                f"environments {idle} have no running episode: reset them before the next step"
            )
        if not (np.abs(moves[mask]) <= 1).all():
            raise ValueError(f"movements must lie in [-1, 1], got {moves[mask].ravel().tolist()}")
        self._blow(moves[mask, 0], mask)
        self._running[mask] = ~self.truncated[mask]

    def _reset(self, mask: np.ndarray) -> None:
        for b in np.flatnonzero(mask):
            n_modes = len(self.winds)
            order = (
                self.rngs[b].permutation(n_modes)
                if self.mode_order == "shuffled"
                else np.arange(n_modes)
            )
            self.modes[b] = order[self._place]
            mean, std = self.winds[self.modes[b]].T
            self._wind[b] = self.rngs[b].normal(mean, std)
        self._time[mask] = 0
        self.positions[mask] = 0.0
        self.state[mask] = 0.0
        self.obs[mask] = 0.0

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        self._blow(self.action_values[actions[mask, 0]], mask)

    def _blow(self, moves: np.ndarray, mask: np.ndarray) -> None:
        """One step of the environments in `mask` by `moves` ([number of them])."""
        rows = np.flatnonzero(mask)
        time = self._time[rows]
        position = self.positions[rows, time] + moves + self._wind[rows, time]
        self.positions[rows, time + 1] = position
        self._time[rows] = time + 1
        self.info["mode"][rows] = self.modes[rows, time]
        self.reward[rows] = -np.abs(position)
        self.truncated[rows] = time + 1 >= self.episode_limit
        self.state[rows, 0] = position
        self.obs[rows, 0, 0] = position

    def words(self) -> Words:
        """Names of the walker, its movements and its place."""
        moves = [f"move {value:+.2g}" for value in self.action_values]
        return Words(("walker",), every(1, grouped("self", ("position",))), every(1, moves))

    def render(self, index: int = 0) -> np.ndarray:
        """Position over the episode so far, the modes shaded, uint8 [H, W, 3]."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        now = int(self._time[index])
        starts = np.flatnonzero(np.diff(self.modes[index, :now], prepend=-1))
        for start, stop in pairwise([*starts, now]):
            axes.axvspan(start, stop, color=f"C{self.modes[index, start]}", alpha=0.25, linewidth=0)
        axes.plot(self.positions[index, : now + 1], color="black", marker=".")
        axes.set_xlim(0, self.episode_limit)
        axes.set_xlabel("step")
        axes.set_ylabel("position")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

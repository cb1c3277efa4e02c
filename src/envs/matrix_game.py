"""Matrix games: a payoff tensor, any number of agents, one state or a few."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.ranges import SIZE, whole
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words, every, numbered, one_hot
from utils.errors import ConfigError
from utils.ranges import check_ranges
from utils.registry import nearest

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Game:
    """A game as tables.

    Args:
        payoff: [states, U_1, ..., U_n] reward of every joint action in every state; play starts in
            state 0.
        next_state: same shape, the state that follows.
        length: steps of an episode unless `episode_limit` says otherwise.
        payoff_after: the rewards from `switch_step` on; None: they stay.
        switch_step: environment step of the run at which the payoff changes.
    """

    payoff: np.ndarray
    next_state: np.ndarray
    length: int = 1
    payoff_after: np.ndarray | None = None
    switch_step: int = 0


# games of one state: payoff and, if it changes, the payoff after the switch
ONE_STATE = {
    # PyMARL's one-step game (QTRAN paper, table 1): a monotone mixer cannot represent it
    "one_step": ([[8, -12, -12], [-12, 0, 0], [-12, 0, 0]], None),
    # DAC, table 1
    "climbing": ([[8, -12, -12], [-12, 6, 0], [-12, 0, 6]], None),
    # S2Q, section 4.1 and figure 1: the second and third best joint actions change places with the
    # best in mid-training
    "shifting": (
        [[8, -12, -12], [-12, 7, 0], [-12, 0, 6]],
        [[6, -12, -12], [-12, 5, 0], [-12, 0, 8]],
    ),
}
PRESETS = (*ONE_STATE, "two_step", "custom")


def print_matrix_status(batch: Any, mixer: Any, mac_out: Any) -> None:
    """Logs what a mixer makes of all joint actions of two agents (PyMARL2's name; its learners call
    it in the one-step game).

    Args:
        batch: B episodes with "state" [B, T, S].
        mixer: from values [B, 1, 2] and states [B, 1, S] to joint values [B, 1, 1].
        mac_out: tensor [B, T, 2, U], values of the agents' actions.
    """
    first, states = mac_out.detach()[:, :1], batch["state"][:, :1]
    n_actions = first.shape[-1]
    joint = np.zeros((n_actions, n_actions))
    for i, j in np.ndindex(joint.shape):
        # the values of actions i and j, by indices alone: no environment imports torch
        chosen = first[:, :, [0, 1], [i, j]]
        joint[i, j] = mixer(chosen, states).mean().item()
    with np.printoptions(precision=1, suppress=True):
        by_agent = mac_out.detach().mean(dim=(0, 1)).cpu().numpy()
        _log.info("joint values:\n%s\nvalues of the agents:\n%s", joint, by_agent)


class MatrixGame(VectorEnv):
    """B matrix games at once; the payoff is the team reward. Every episode ends by the game's own
    rules (`terminated`).

    One-state games: observation and state are the constant [1]; an episode is `episode_limit` plays
    of the game. `two_step` (QMIX paper, section 5): the first agent's first action leads to state
    2A (all payoffs 7) or 2B ([[0, 1], [1, 8]]), the first step pays nothing; observation and state
    are the one-hot of (start, 2A, 2B), and the last observation of an episode repeats that of its
    second step.

    Args:
        n_envs: B.
        seed: for the interface; nothing here is random.
        map_name: "one_step", "climbing", "shifting", "two_step" or "custom".
        payoff: for "custom": nested lists [U_1, ..., U_n], one level per agent.
        payoff_after: for "custom", if not None: the payoff from `switch_step` on, same shape.
        switch_step: `t_env` (see `set_t_env`) from which on "shifting" and `payoff_after` pay the
            second payoff.
        episode_limit: plays per episode; None: 1 (2 in "two_step", where nothing else is allowed).

    Raises:
        ConfigError: an unknown map, a ragged or missing payoff, a negative switch_step, an
            episode_limit below 1.
    """

    ranges = {"switch_step": whole(0), "episode_limit": SIZE}

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "one_step",
        payoff: Sequence[Any] | None = None,
        payoff_after: Sequence[Any] | None = None,
        switch_step: int = 20000,
        episode_limit: int | None = None,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.game = make_game(map_name, payoff, payoff_after, switch_step)
        length = _length(self.game, episode_limit, map_name)
        n_states, *action_sizes = self.game.payoff.shape
        self._rewards: np.ndarray = self.game.payoff.reshape(n_states, -1)
        self._next_state = self.game.next_state.reshape(n_states, -1)
        # joint action index = actions @ strides
        self._strides = np.array(
            [int(np.prod(action_sizes[i + 1 :])) for i in range(len(action_sizes))]
        )
        self._one_hot = np.eye(n_states, dtype=np.float32)
        self._state = np.zeros(n_envs, dtype=np.int64)
        self._played = np.zeros(n_envs, dtype=np.int64)
        # the last joint action and the state that it was played in, for pictures
        self._last_joint = np.full(n_envs, -1)
        self._last_state = np.zeros(n_envs, dtype=np.int64)
        spec = EnvSpec(
            n_agents=len(action_sizes),
            n_actions=max(action_sizes),
            obs_size=n_states,
            state_size=n_states,
            episode_limit=length,
            action_sizes=tuple(action_sizes),
        )
        super().__init__(n_envs, spec, seed)
        for agent, size in enumerate(action_sizes):
            self.avail_actions[:, agent, :size] = 1

    def set_t_env(self, t_env: int) -> None:
        """Tells the game how far the run is: it pays `payoff_after` from `switch_step` on.

        Args:
            t_env: environment steps of the training run so far, also in evaluation environments.
        """
        table = self.game.payoff
        if self.game.payoff_after is not None and t_env >= self.game.switch_step:
            table = self.game.payoff_after
        self._rewards = table.reshape(self._rewards.shape)

    def _reset(self, mask: np.ndarray) -> None:
        self._state[mask] = 0
        self._played[mask] = 0
        self._last_joint[mask] = -1
        self._last_state[mask] = 0
        self._observe(mask)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        joint = actions[mask] @ self._strides
        state = self._state[mask]
        self.reward[mask] = self._rewards[state, joint]
        self._played[mask] += 1
        self._last_joint[mask] = joint
        self._last_state[mask] = state
        over = self._played[mask] >= self.episode_limit
        self._state[mask] = np.where(over, state, self._next_state[state, joint])
        self.terminated[mask] = over
        self._observe(mask)

    def _observe(self, mask: np.ndarray) -> None:
        one_hot = self._one_hot[self._state[mask]]
        self.state[mask] = one_hot
        self.obs[mask] = one_hot[:, None]

    def words(self) -> Words:
        """Names of players, actions (numbers) and the states."""
        states = one_hot("state", map(str, range(self.obs_size)))
        words = numbered(self.obs_sizes, self.action_sizes)
        return words._replace(observations=every(self.n_agents, states))

    def render(self, index: int = 0) -> np.ndarray:
        """The payoff table of the state last played in, the joint action framed, uint8 [H, W, 3].

        Rows are the first agent's actions, columns the joint actions of the others.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        rows = self.action_sizes[0]
        table = self._rewards[self._last_state[index]].reshape(rows, -1)
        figure = Figure(
            figsize=(0.9 * table.shape[1] + 0.8, 0.7 * rows + 0.8), dpi=80, layout="constrained"
        )
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        largest = max(np.abs(self._rewards).max(), 1e-9)
        axes.imshow(table, cmap="RdYlGn", vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            axes.text(column, row, f"{value:g}", ha="center", va="center")
        if self._last_joint[index] >= 0:
            row, column = divmod(int(self._last_joint[index]), table.shape[1])
            axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=3
                )
            )
        others = np.ndindex(*self.action_sizes[1:])
        axes.set_xticks(range(table.shape[1]), [",".join(map(str, joint)) for joint in others])
        axes.set_yticks(range(rows))
        axes.set_xlabel("actions of the other agents")
        axes.set_ylabel("agent 0")
        axes.set_title(f"state {self._last_state[index]}, step {self._played[index]}", fontsize=9)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def make_game(
    map_name: str,
    payoff: Sequence[Any] | None,
    payoff_after: Sequence[Any] | None,
    switch_step: int,
) -> Game:
    """The game that the configuration describes; arguments and errors as in `MatrixGame`."""
    if map_name not in PRESETS:
        raise ConfigError(
            f"matrix_game: unknown map_name '{map_name}'; {nearest(map_name, PRESETS)}"
        )
    if map_name != "custom" and (payoff is not None or payoff_after is not None):
        raise ConfigError(
            "matrix_game: payoff and payoff_after are for map_name=custom only, but map_name is "
            f"'{map_name}'"
        )
    if map_name == "two_step":
        table = np.array([[[0, 0], [0, 0]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]], dtype=np.float32)
        following = np.zeros(table.shape, dtype=np.int64)
        following[0] = [[1, 1], [2, 2]]
        return Game(table, following, length=2)
    if map_name == "custom":
        if payoff is None:
            raise ConfigError(
                "matrix_game: map_name=custom needs env_args.payoff, e.g. payoff: [[1, 0], [0, 2]]"
            )
    else:
        payoff, payoff_after = ONE_STATE[map_name]
    table = _table("payoff", payoff)
    after = None if payoff_after is None else _table("payoff_after", payoff_after)
    if after is not None and after.shape != table.shape:
        raise ConfigError(
            f"matrix_game: payoff_after has shape {list(after.shape[1:])}, payoff has "
            f"{list(table.shape[1:])}: "
            "they must be equal"
        )
    return Game(
        table, np.zeros(table.shape, dtype=np.int64), payoff_after=after, switch_step=switch_step
    )


def _table(name: str, nested: Sequence[Any]) -> np.ndarray:
    """A nested list as [1, U_1, ..., U_n]."""
    try:
        table = np.array(nested, dtype=np.float32)
    except (ValueError, TypeError):
        table = np.zeros(0, dtype=np.float32)
    if table.ndim == 0 or table.size == 0 or not np.isfinite(table).all():
        raise ConfigError(
            f"matrix_game: {name} must be nested lists of finite numbers, one level per agent and "
            "all lists of a level "
            f"equally long, got {nested!r}"
        )
    return table[None]


def _length(game: Game, episode_limit: int | None, map_name: str) -> int:
    if episode_limit is None:
        return game.length
    if map_name == "two_step" and episode_limit != game.length:
        raise ConfigError(
            f"matrix_game: two_step always takes 2 steps, but episode_limit is {episode_limit}"
        )
    return episode_limit

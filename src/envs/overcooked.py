"""Overcooked-AI (Carroll et al. 2019): two cooks deliver soups, in the package's own game."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.grid_canvas import GridCanvas
from envs.multiagentenv import Actions, ArrayEnv
from envs.packages import load_package
from envs.particle.drawing import GREY, PALETTE, Colour
from envs.ranges import AMOUNT, SIZE, SWITCH, whole
from envs.words import Words, numbered
from utils.errors import ConfigError
from utils.ranges import check_ranges
from utils.registry import nearest

INSTALL = "pip install -r requirements-overcooked.txt"
ACTIONS = ("up", "down", "right", "left", "stay", "interact")  # in the package's order
GROUND = {"X": GREY, "P": (90, 90, 90), "S": PALETTE[2], "O": PALETTE[6], "T": PALETTE[5]}
DISH: Colour = (225, 225, 235)


class Overcooked(ArrayEnv):
    """One kitchen. An observation is the package's lossless encoding, flattened: layers of the grid
    with the agent itself first. The state is the first agent's observation, which has all there is.

    The reward is the team's: what delivered soups are worth (20, mostly), and `shaped_reward` times
    the package's rewards for steps on the way there. An episode is cut after `time_limit` steps;
    nothing else ends it.

    Actions: up, down, right, left, stay, interact.

    `info`: sparse_return, what the soups of the episode were worth so far, without shaping.

    Args:
        seed: of this environment's random stream; only `random_start` draws from it.
        map_name: one of the package's layouts for two cooks, e.g. "cramped_room".
        time_limit: the longest episode.
        shaped_reward: factor of the rewards for picking up dishes and soups and filling pots.
        shaping_steps: over so many steps of the training this factor falls to zero, in a straight
            line; 0: it stays.
        random_start: whether the cooks start on random free cells, which need not be in parts of a
            divided kitchen where they can deliver anything.

    Raises:
        ConfigError: an unknown layout, one that is not for two cooks, a value out of range.
        MissingPackage: overcooked-ai is not there.
    """

    n_agents = 2
    ranges = {
        "time_limit": SIZE,
        "shaped_reward": AMOUNT,
        "shaping_steps": whole(0),
        "random_start": SWITCH,
    }

    def __init__(
        self,
        seed: int,
        map_name: str = "cramped_room",
        time_limit: int = 400,
        shaped_reward: float = 0.0,
        shaping_steps: int = 0,
        random_start: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.episode_limit = time_limit
        self._shaped_reward = shaped_reward
        self._shaping_steps = shaping_steps
        self._random_start = random_start
        self._t_env = 0
        self._game = load_package("overcooked", "overcooked_ai_py.mdp.overcooked_mdp", INSTALL)
        self._kitchen = self._read_layout(map_name)
        self._running = False
        self._avail_actions = np.ones((2, len(ACTIONS)), dtype=np.uint8)
        self.seed(seed)
        self._begin(self._kitchen.get_standard_start_state())

    def _read_layout(self, name: str) -> Any:
        folder = Path(str(self._game.__file__)).parents[1] / "data" / "layouts"
        known = sorted(path.stem for path in folder.glob("*.layout"))
        if name not in known:
            raise ConfigError(f"overcooked: unknown layout '{name}'; {nearest(str(name), known)}")
        kitchen = self._game.OvercookedGridworld.from_layout_name(name)
        if kitchen.num_players != 2:
            raise ConfigError(
                f"overcooked: {name} is for {kitchen.num_players} cooks, only layouts for 2 work"
            )
        return kitchen

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Starts an episode; returns observations and state."""
        state = self._kitchen.get_standard_start_state()
        if self._random_start:
            free = self._kitchen.get_valid_player_positions()
            chosen = self._rng.choice(len(free), size=2, replace=False)
            state = self._game.OvercookedState.from_player_positions(
                [free[i] for i in chosen],
                bonus_orders=self._kitchen.start_bonus_orders,
                all_orders=self._kitchen.start_all_orders,
            )
        self._begin(state)
        self._running = True
        return self.get_obs(), self.get_state()

    def _begin(self, state: Any) -> None:
        self._state = state
        self._steps = 0
        self._sparse_return = 0.0
        self._observe()

    def _observe(self) -> None:
        layers = self._kitchen.lossless_state_encoding(self._state, horizon=self.episode_limit)
        self._obs = np.array(layers, dtype=np.float32).reshape(2, -1)

    def step(  # type: ignore[override]
        self, actions: Actions
    ) -> tuple[float, bool, Mapping[str, Any]]:
        """Takes one action per cook.

        Args:
            actions: 2 action indices.

        Returns:
            the team's reward, whether the episode is over, info.

        Raises:
            ValueError: no running episode, an unknown action.
        """
        if not self._running:
            raise ValueError("overcooked: no running episode, reset before the next step")
        chosen = [int(action) for action in actions]
        if len(chosen) != 2 or not all(0 <= action < len(ACTIONS) for action in chosen):
            raise ValueError(f"overcooked: actions {chosen} are not 2 numbers from 0 to 5")
        known = self._game.Action.INDEX_TO_ACTION
        self._state, info = self._kitchen.get_state_transition(
            self._state, [known[action] for action in chosen]
        )
        self._steps += 1
        delivered = float(sum(info["sparse_reward_by_agent"]))
        self._sparse_return += delivered
        reward = delivered + self._shaping() * float(sum(info["shaped_reward_by_agent"]))
        self._observe()
        cut = self._steps >= self.episode_limit
        self._running = not cut
        figures: dict[str, Any] = {"sparse_return": self._sparse_return}
        return reward, cut, {**figures, "episode_limit": True} if cut else figures

    def _shaping(self) -> float:
        if not self._shaping_steps:
            return self._shaped_reward
        return self._shaped_reward * max(0.0, 1 - self._t_env / self._shaping_steps)

    def set_t_env(self, t_env: int) -> None:
        self._t_env = t_env

    def seed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def get_rng_state(self) -> dict[str, Any]:
        return {"rng": self._rng.bit_generator.state}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._obs, self._obs[0], self._avail_actions

    def words(self) -> Words:
        """Names of the actions."""
        return numbered((self._obs.shape[1],) * 2, (len(ACTIONS),) * 2)._replace(
            actions=(ACTIONS,) * 2
        )

    def render(self) -> np.ndarray:
        """The kitchen from above, uint8 [H, W, 3]: P is a pot with its ingredients, S the place to
        serve, cooks are discs that look at a small disc, coloured as what they hold.
        """
        kitchen, state = self._kitchen, self._state
        canvas = GridCanvas(kitchen.height, kitchen.width)
        for y, row in enumerate(kitchen.terrain_mtx):
            for x, kind in enumerate(row):
                if kind != " ":
                    canvas.square(y, x, 0.5, GROUND.get(kind, DISH))
                if kind == "P":
                    soup = state.get_object((x, y)) if state.has_object((x, y)) else None
                    canvas.label(y, x, 0.3, f"P{len(soup.ingredients) if soup else 0}")
                elif kind in "SD":
                    canvas.label(y, x, 0.3, kind)
        for (x, y), thing in state.objects.items():
            if kitchen.terrain_mtx[y][x] != "P":
                canvas.disc(y, x, 0.2, _colour(thing))
        for cook, colour in zip(state.players, (PALETTE[0], PALETTE[3]), strict=True):
            (x, y), (dx, dy) = cook.position, cook.orientation
            canvas.disc(y, x, 0.38, colour)
            held = cook.held_object
            canvas.disc(y + 0.3 * dy, x + 0.3 * dx, 0.15, _colour(held) if held else colour)
        return canvas.picture()


def _colour(thing: Any) -> Colour:
    names = {"onion": GROUND["O"], "tomato": GROUND["T"], "soup": PALETTE[1]}
    return names.get(thing.name, DISH)

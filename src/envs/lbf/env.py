"""Level-Based Foraging: players of different strength collect food together (Albrecht and
Ramamoorthy 2013; Papoudakis et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from envs.grid_canvas import GridCanvas
from envs.lbf.kernels import (
    N_ACTIONS,
    N_COUNTS,
    N_LAYERS,
    STRONGEST_TEAM,
    Fields,
    Rules,
    Shown,
    begin,
    step,
)
from envs.lbf.tasks import Task, parse_name
from envs.named import override
from envs.particle.drawing import PALETTE
from envs.ranges import AMOUNT, SIZE, SWITCH, whole
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words, every, grouped
from utils.errors import ConfigError
from utils.ranges import Range, check_ranges

Levels = int | Sequence[int]

COUNTS = ("foods_loaded", "failed_loads", "all_food_loaded")
SMALLEST_FIELD = 3  # food lies at no edge
PLAYER_COLOUR, FOOD_COLOUR = PALETTE[0], PALETTE[2]


def _one_or_more(value: Any) -> bool:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return len(entries) > 0 and all(map(SIZE.holds, entries))


def _is_field_size(value: Any) -> bool:
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    return len(sides) == 2 and all(map(whole(SMALLEST_FIELD).holds, sides))


LEVELS = Range(_one_or_more, "a whole number of at least 1, or a list of them")
FIELD_SIZE = Range(
    _is_field_size, f"a whole number of at least {SMALLEST_FIELD}, or two: rows and columns"
)


class LevelBasedForaging(VectorEnv):
    """B fields of food at once, by the rules of the package lbforaging 2.0 (tasks "-v3").

    One step:
    1. Who walks off the field, into food, or loads where no food is beside it, does nothing.
    2. All walk at once. Players who want the same cell stay where they are, and who stands wants
       its own cell; yet two may change places, and one may walk into a cell that another could
       not leave, so that cells can hold several players.
    3. The players who load a food together take it if their levels add up to its own; otherwise
       each of them is rewarded with -penalty. Player i's reward for a food is its level times the
       food's; with `normalize_reward` divided by the sum of the levels of those who took it and
       by all food at the start, so that the rewards of an episode add up to at most 1.

    Episodes end when all food is gone (terminated), or are cut after `time_limit` steps (truncated:
    learners count on a future). In lbforaging, and in EPyMARL with it, they end there, too:
    `time_limit_ends`.

    An episode starts as in a new lbforaging environment whose generator is in the state of this
    one's. Only its later episodes may differ: there no player starts where one of those that are
    still to be placed stood at the end of the episode before.

    Observation: (row, column, level) of each food in view, then of each player, the own one first;
    (-1, -1, 0) where there are fewer; places count from the upper left corner of the view. Or,
    with `grid_observation`, three layers of the square around the player, flattened. State: all
    observations, as in EPyMARL. Actions: 0 none, 1 north, 2 south, 3 west, 4 east, 5 load; all are
    available, unless `action_mask`. Rewards are individual. `info`, of the episode so far:
    `foods_loaded`, `failed_loads`; and `all_food_loaded`, 1 if none is left.

    Args:
        n_envs: B.
        seed: see `VectorEnv`.
        map_name: a name as in lbforaging, see `parse_name`; it stands for all that is None below.
        field_size: cells along each side, or [rows, columns].
        players: A.
        max_num_food: foods at the start; fewer where the field has no room.
        sight: how many cells a player sees in each direction; None and not named: the whole field.
        force_coop: every food is as strong as possible.
        min_player_level, max_player_level: each for all players, or a list for A players; which
            one has which entry is drawn for each episode.
        min_food_level, max_food_level: likewise for foods. A maximum of None (and not named): the
            sum of the three lowest levels among the players.
        penalty: for each player in a failed attempt to load.
        normalize_reward: see above.
        grid_observation: see above.
        observe_agent_levels: False: observations do not have the players' levels.
        action_mask: only what does something is available.
        time_limit: steps.
        time_limit_ends: an episode that reaches the limit counts as terminated, not as cut.

    Raises:
        ConfigError: an unknown name, a value out of range, values that do not go together.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "field_size": FIELD_SIZE,
        "players": SIZE,
        "max_num_food": SIZE,
        "sight": SIZE,
        "force_coop": SWITCH,
        "min_player_level": LEVELS,
        "max_player_level": LEVELS,
        "min_food_level": LEVELS,
        "max_food_level": LEVELS,
        "penalty": AMOUNT,
        "normalize_reward": SWITCH,
        "grid_observation": SWITCH,
        "observe_agent_levels": SWITCH,
        "action_mask": SWITCH,
        "time_limit": SIZE,
        "time_limit_ends": SWITCH,
    }

    def __init__(
        self,
        n_envs: int,
        seed: int,
        map_name: str = "8x8-2p-2f-coop",
        field_size: int | Sequence[int] | None = None,
        players: int | None = None,
        max_num_food: int | None = None,
        sight: int | None = None,
        force_coop: bool | None = None,
        min_player_level: Levels = 1,
        max_player_level: Levels = 2,
        min_food_level: Levels = 1,
        max_food_level: Levels | None = None,
        penalty: float | None = None,
        normalize_reward: bool = True,
        grid_observation: bool | None = None,
        observe_agent_levels: bool = True,
        action_mask: bool = False,
        time_limit: int = 50,
        time_limit_ends: bool = False,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        task = override(
            parse_name(map_name),
            field_size=_both_sides(field_size),
            players=players,
            max_num_food=max_num_food,
            sight=sight,
            force_coop=force_coop,
            penalty=penalty,
            grid_observation=grid_observation,
        )
        if max_food_level is None:
            max_food_level = task.max_food_level
        _check_task(task)
        self.task = task
        self.rules = Rules(
            *task.field_size,
            sight=max(task.field_size) if task.sight is None else task.sight,
            player_low=_spread(min_player_level, task.players, "min_player_level", "players"),
            player_high=_spread(max_player_level, task.players, "max_player_level", "players"),
            food_low=_spread(min_food_level, task.max_num_food, "min_food_level", "foods"),
            food_high=_spread(max_food_level or 0, task.max_num_food, "max_food_level", "foods"),
            force_coop=task.force_coop,
            penalty=float(task.penalty),
            normalize_reward=bool(normalize_reward),
            grid_observation=task.grid_observation,
            observe_agent_levels=bool(observe_agent_levels),
            action_mask=bool(action_mask),
        )
        _check_levels(self.rules)
        n_players, n_foods = task.players, task.max_num_food
        self.fields = Fields(
            positions=np.zeros((n_envs, n_players, 2), dtype=np.int64),
            levels=np.zeros((n_envs, n_players), dtype=np.int64),
            foods=np.zeros((n_envs, n_foods, 2), dtype=np.int64),
            food_levels=np.zeros((n_envs, n_foods), dtype=np.int64),
            spawned=np.zeros(n_envs, dtype=np.int64),
        )
        self._time_limit_ends = bool(time_limit_ends)
        self._time = np.zeros(n_envs, dtype=np.int64)
        self._rewards = np.zeros((n_envs, n_players))
        self._counts = np.zeros((N_COUNTS, n_envs))
        self._every_number = np.arange(n_envs)
        obs_size = 3 * n_foods + (3 if observe_agent_levels else 2) * n_players
        if task.grid_observation:
            obs_size = N_LAYERS * (2 * self.rules.sight + 1) ** 2
        spec = EnvSpec(
            n_agents=n_players,
            n_actions=N_ACTIONS,
            obs_size=obs_size,
            state_size=n_players * obs_size,
            episode_limit=time_limit,
            individual_rewards=True,
        )
        super().__init__(n_envs, spec, seed)
        self.info = dict(zip(COUNTS, self._counts, strict=True))
        self.avail_actions[:] = 1
        self._shown = Shown(self.obs, self.state, self.avail_actions)

    def _reset(self, mask: np.ndarray) -> None:
        for b in np.flatnonzero(mask).tolist():
            begin(self.rngs[b], b, self.fields, self.rules, self._counts, self._shown)
        self._time[mask] = 0

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        everyone = mask.all()
        numbers = self._every_number if everyone else np.flatnonzero(mask)
        step(numbers, actions, self.fields, self.rules, self._rewards, self._counts, self._shown)
        # a slice is several times as fast as an index array and means the same
        rows = slice(None) if everyone else numbers
        self._time[rows] += 1
        self.reward[rows] = self._rewards[rows]
        cleared = self._counts[2, rows] > 0
        late = ~cleared & (self._time[rows] >= self.episode_limit)
        self.terminated[rows] = cleared | (late & self._time_limit_ends)
        self.truncated[rows] = late & (not self._time_limit_ends)

    def words(self) -> Words:
        """Names of players, actions and what a player sees."""
        n, rules = self.n_agents, self.rules
        if rules.grid_observation:
            cells = [(y, x) for y in _around(rules.sight) for x in _around(rules.sight)]
            layers = ("level of a player", "level of food", "free")
            names = [
                name for layer in layers for name in grouped(layer, (f"{y} {x}" for y, x in cells))
            ]
        else:
            names = []
            for food in range(self.task.max_num_food):
                names += grouped(f"food {food}", ("row", "column", "level"))
            for player in ("self", *(f"other player {i}" for i in range(1, n))):
                level = ("level",) if rules.observe_agent_levels else ()
                names += grouped(player, ("row", "column", *level))
        moves = ("none", "north", "south", "west", "east", "load")
        return Words(tuple(f"player {i}" for i in range(n)), every(n, names), every(n, moves))

    def render(self, index: int = 0) -> np.ndarray:
        """The field with the levels of players (discs) and food (squares), uint8 [H, W, 3]."""
        canvas = GridCanvas(*self.task.field_size)
        fields = self.fields
        for (row, col), level in zip(fields.foods[index], fields.food_levels[index], strict=True):
            if level > 0:
                canvas.square(row, col, 0.4, FOOD_COLOUR)
                canvas.label(row, col, 0.4, str(level))
        for (row, col), level in zip(fields.positions[index], fields.levels[index], strict=True):
            canvas.disc(row, col, 0.4, PLAYER_COLOUR)
            canvas.label(row, col, 0.4, str(level))
        return canvas.picture()


def _around(reach: int) -> list[str]:
    """Rows or columns by their distance: "-1", "+0", "+1"."""
    return [f"{d:+d}" for d in range(-reach, reach + 1)]


def _both_sides(field_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if field_size is None or isinstance(field_size, int):
        return None if field_size is None else (field_size, field_size)
    rows, cols = field_size
    return rows, cols


def _spread(given: Levels, n: int, key: str, what: str) -> np.ndarray:
    """One number for each of n, int64 [n]."""
    if isinstance(given, int):
        return np.full(n, given, dtype=np.int64)
    if len(given) != n:
        raise ConfigError(
            f"env_args.{key} must be one number or as many as there are {what} ({n}), got "
            f"{list(given)}"
        )
    return np.array(given, dtype=np.int64)


def _check_task(task: Task) -> None:
    """What a name can say wrong, and what needs more than one key."""
    rows, cols = task.field_size
    check_ranges(vars(task), LevelBasedForaging.ranges, "env_args.")
    if 2 * task.players > rows * cols:
        raise ConfigError(
            f"lbf: {task.players} players are too many for {rows} x {cols} cells, at most half of "
            "them"
        )


def _check_levels(rules: Rules) -> None:
    if (rules.player_low > rules.player_high).any():
        raise ConfigError(
            f"env_args.min_player_level {rules.player_low.tolist()} must not be above "
            f"max_player_level {rules.player_high.tolist()}"
        )
    limited = rules.food_high > 0
    if (limited & (rules.food_low > rules.food_high)).any():
        raise ConfigError(
            f"env_args.min_food_level {rules.food_low.tolist()} must not be above max_food_level "
            f"{rules.food_high.tolist()}"
        )
    weakest = int(np.sort(rules.player_low)[:STRONGEST_TEAM].sum())
    if not rules.force_coop and (~limited & (rules.food_low > weakest)).any():
        raise ConfigError(
            f"env_args.min_food_level {rules.food_low.tolist()} must not be above {weakest}, the "
            "sum of the three weakest players' levels: set max_food_level"
        )

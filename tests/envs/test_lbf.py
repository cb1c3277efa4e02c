"""Level-Based Foraging: against its rules in plain Python, and against lbforaging itself."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from envs import make_vector_env
from envs.lbf.env import LevelBasedForaging
from envs.lbf.tasks import Task, parse_name
from utils.errors import ConfigError

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
STEPS = {NORTH: (-1, 0), SOUTH: (1, 0), WEST: (0, -1), EAST: (0, 1)}

# every family of tasks: size, sight, cooperation, individual food, penalty, grid, lists of levels
TASKS = {
    "8x8-2p-2f-coop": {},
    "2s-8x8-2p-2f-coop": {},
    "10x10-3p-3f": {},
    "2s-10x10-3p-3f": {},
    "15x15-3p-5f": {},
    "15x15-4p-5f": {},
    "5x5-4p-3f-ind": {},
    "6x6-3p-2f-pen": {},
    "2s-7x7-9p-4f-coop-pen": {},
    "grid-2s-8x8-3p-2f": {},
    "grid-6x6-2p-2f-coop": {"observe_agent_levels": False},
    "1s-5x9-3p-2f": {"normalize_reward": False, "penalty": 0.25},
    "6x6-2p-1f": {"observe_agent_levels": False, "max_food_level": 5, "min_food_level": 3},
    "8x8-3p-3f": {
        "min_player_level": [1, 2, 3],
        "max_player_level": [1, 4, 3],
        "min_food_level": [1, 2, 3],
        "max_food_level": [2, 2, 7],
        "field_size": [6, 12],
        "time_limit": 20,
    },
}


def keywords(map_name, **given):
    """The arguments that lbforaging would get."""
    task = parse_name(map_name)
    size = given.get("field_size", task.field_size)
    top = given.get("max_food_level", task.max_food_level)
    return {
        "players": task.players,
        "min_player_level": given.get("min_player_level", 1),
        "max_player_level": given.get("max_player_level", 2),
        "min_food_level": given.get("min_food_level", 1),
        "max_food_level": top,
        "field_size": tuple(size),
        "max_num_food": task.max_num_food,
        "sight": task.sight or max(size),
        "max_episode_steps": given.get("time_limit", 50),
        "force_coop": task.force_coop,
        "normalize_reward": given.get("normalize_reward", True),
        "grid_observation": task.grid_observation,
        "observe_agent_levels": given.get("observe_agent_levels", True),
        "penalty": given.get("penalty", task.penalty),
    }


class Plain:
    """The rules in plain Python: a dict from cell to food level, lists of players."""

    def __init__(self, map_name, **given):
        self.k = keywords(map_name, **given)
        self.rows, self.cols = self.k["field_size"]

    def per_one(self, key, n):
        value = self.k[key]
        return list(value) if isinstance(value, list) else [value] * n

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        n, m = self.k["players"], self.k["max_num_food"]
        self.places, self.levels, self.food, self.time = [], [], {}, 0
        bounds = list(
            zip(
                self.per_one("min_player_level", n),
                self.per_one("max_player_level", n),
                strict=True,
            )
        )
        for i in rng.permutation(n):
            while True:
                cell = int(rng.integers(0, self.rows)), int(rng.integers(0, self.cols))
                if cell not in self.places:
                    break
            self.places.append(cell)
            self.levels.append(int(rng.integers(bounds[i][0], bounds[i][1] + 1)))
        team = sum(sorted(self.levels)[:3])
        highs = self.per_one("max_food_level", m)
        lows = self.per_one("min_food_level", m)
        bounds = [
            ((high or team) if self.k["force_coop"] else low, high or team)
            for low, high in zip(lows, highs, strict=True)
        ]
        waiting = [bounds[i] for i in rng.permutation(m)]
        attempts = 0
        while waiting and attempts < 1000:
            attempts += 1
            row, col = int(rng.integers(1, self.rows - 1)), int(rng.integers(1, self.cols - 1))
            around = {(row + y, col + x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
            around |= {(row + 2, col), (row - 2, col), (row, col + 2), (row, col - 2)}
            if around & self.food.keys() or (row, col) in self.places:
                continue
            low, high = waiting.pop(0)
            self.food[row, col] = low if low == high else int(rng.integers(low, high + 1))
        self.spawned = sum(self.food.values())

    def beside(self, cell):
        return [
            (cell[0] + y, cell[1] + x)
            for y, x in STEPS.values()
            if (cell[0] + y, cell[1] + x) in self.food
        ]

    def valid(self, i, action):
        if action == NONE:
            return True
        if action == LOAD:
            return bool(self.beside(self.places[i]))
        row, col = (a + b for a, b in zip(self.places[i], STEPS[action], strict=True))
        return 0 <= row < self.rows and 0 <= col < self.cols and (row, col) not in self.food

    def step(self, actions):
        """Rewards, and whether it is over."""
        self.time += 1
        actions = [a if self.valid(i, a) else NONE for i, a in enumerate(actions)]
        wanted = [
            tuple(np.add(place, STEPS.get(a, (0, 0))).tolist())
            for place, a in zip(self.places, actions, strict=True)
        ]
        self.places = [
            want if wanted.count(want) == 1 else place
            for want, place in zip(wanted, self.places, strict=True)
        ]
        rewards = [0.0] * len(actions)
        teams = {}
        for i, action in enumerate(actions):
            if action == LOAD:
                (food,) = self.beside(self.places[i])
                teams.setdefault(food, []).append(i)
        for food, team in teams.items():
            strength = sum(self.levels[i] for i in team)
            if strength < self.food[food]:
                for i in team:
                    rewards[i] = -self.k["penalty"]
                continue
            level = self.food.pop(food)
            for i in team:
                rewards[i] = float(self.levels[i] * level)
                if self.k["normalize_reward"]:
                    rewards[i] /= strength * self.spawned
        return rewards, not self.food or self.time >= self.k["max_episode_steps"]

    def observations(self):
        view = self.grid_view if self.k["grid_observation"] else self.list_view
        return np.array([view(i) for i in range(len(self.places))], dtype=np.float32)

    def list_view(self, i):
        (row, col), sight = self.places[i], self.k["sight"]
        corner = max(row - sight, 0), max(col - sight, 0)
        seen = []
        for y, x in sorted(self.food):
            if abs(y - row) <= sight and abs(x - col) <= sight:
                seen += [y - corner[0], x - corner[1], self.food[y, x]]
        seen += [-1, -1, 0] * (self.k["max_num_food"] - len(seen) // 3)
        size = 3 if self.k["observe_agent_levels"] else 2
        players = []
        for j in [i] + [j for j in range(len(self.places)) if j != i]:
            place = self.places[j][0] - corner[0], self.places[j][1] - corner[1]
            if min(place) >= 0 and max(place) <= 2 * sight:
                players += [*place, self.levels[j]][:size]
        unseen = len(self.places) - len(players) // size
        return seen + players + [-1, -1, 0][:size] * unseen

    def grid_view(self, i):
        (row, col), sight = self.places[i], self.k["sight"]
        levels = dict(zip(self.places, self.levels, strict=True))
        if not self.k["observe_agent_levels"]:
            levels = dict.fromkeys(levels, 1)
        cells = [
            (y, x)
            for y in range(row - sight, row + sight + 1)
            for x in range(col - sight, col + sight + 1)
        ]
        inside = [0 <= y < self.rows and 0 <= x < self.cols for y, x in cells]
        return [
            *(levels.get(cell, 0) for cell in cells),
            *(self.food.get(cell, 0) for cell in cells),
            *(
                fine and cell not in levels and cell not in self.food
                for cell, fine in zip(cells, inside, strict=True)
            ),
        ]

    def place(self, places):
        self.places = list(map(tuple, places))


class Package:
    """lbforaging itself, with the same methods."""

    def __init__(self, map_name, **given):
        foraging = pytest.importorskip("lbforaging.foraging")
        spaces = importlib.import_module("gymnasium.spaces")
        k = keywords(map_name, **given)
        # it makes no room for grids, and believes that a field is as high as wide
        self.env = foraging.ForagingEnv(**{**k, "grid_observation": False})
        self.env._grid_observation = k["grid_observation"]
        shape = self.env.observation_space[0].shape
        if k["grid_observation"]:
            shape = (3, 2 * k["sight"] + 1, 2 * k["sight"] + 1)
        box = spaces.Box(-np.inf, np.inf, shape, dtype=np.float32)
        self.env.observation_space = spaces.Tuple([box] * k["players"])

    def reset(self, seed):
        for player in self.env.players:
            player.position = None  # it would keep players off the cells of the episode before
        self.shown, _ = self.env.reset(seed=seed)

    def step(self, actions):
        self.shown, rewards, done, _, _ = self.env.step(actions)
        return rewards, done

    def observations(self):
        return np.array([one.ravel() for one in self.shown], dtype=np.float32)

    def valid(self, i, action):
        from lbforaging.foraging.environment import Action

        return Action(action) in self.env._valid_actions[self.env.players[i]]

    def place(self, places):
        for player, place in zip(self.env.players, places, strict=True):
            player.position = tuple(place)
        self.env._gen_valid_moves()


class Actors:
    """Random actions; who can load mostly does, and who could does not always wait."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, env, b):
        chosen = self.rng.integers(0, 6, env.n_agents)
        able = [_beside_food(env, b, i) for i in range(env.n_agents)]
        return np.where(able & (self.rng.random(env.n_agents) < 0.7), LOAD, chosen)


def _beside_food(env, b, i):
    apart = np.abs(env.fields.foods[b] - env.fields.positions[b, i]).sum(axis=1)
    return bool((apart[env.fields.food_levels[b] > 0] == 1).any())


def free_places(env, b, rng):
    """Places for all players in which no food is; several may be in one."""
    foods = set(map(tuple, env.fields.foods[b][env.fields.food_levels[b] > 0].tolist()))
    rows, cols = env.task.field_size
    cells = [(y, x) for y in range(rows) for x in range(cols) if (y, x) not in foods]
    return [cells[k] for k in rng.integers(0, len(cells), env.n_agents)]


def compare(reference_class, name, n_episodes, shuffle_every=7):
    """Plays the batched environment and one reference for each of its fields; returns the number of
    steps compared. Now and then all players are put elsewhere, several into one cell.
    """
    n_envs = 3
    env = LevelBasedForaging(n_envs, 0, name, **TASKS[name], action_mask=True)
    plain = LevelBasedForaging(n_envs, 0, name, **TASKS[name])
    references = [reference_class(name, **TASKS[name]) for _ in range(n_envs)]
    actors, rng, steps = Actors(1), np.random.default_rng(2), 0
    for episode in range(n_episodes):
        seeds = [1000 * episode + b for b in range(n_envs)]
        for one in (env, plain):
            one.rngs = [np.random.default_rng(seed) for seed in seeds]
            one.reset()
        for reference, seed in zip(references, seeds, strict=True):
            reference.reset(seed)
        running = np.ones(n_envs, dtype=bool)
        while running.any():
            for b in np.flatnonzero(running):
                expected = references[b].observations()
                np.testing.assert_array_equal(env.obs[b], expected)
                np.testing.assert_array_equal(env.state[b], expected.ravel())
                mask = [[references[b].valid(i, a) for a in range(6)] for i in range(env.n_agents)]
                np.testing.assert_array_equal(env.avail_actions[b], mask)
            actions = np.stack([actors(env, b) for b in range(n_envs)])
            plain.step(actions, running)
            valid = np.take_along_axis(env.avail_actions, actions[:, :, None], 2)[:, :, 0]
            env.step(np.where(valid, actions, NONE), running)
            for b in np.flatnonzero(running):
                rewards, done = references[b].step(actions[b].tolist())
                np.testing.assert_array_equal(env.reward[b], np.array(rewards, dtype=np.float32))
                np.testing.assert_array_equal(env.reward[b], plain.reward[b])
                np.testing.assert_array_equal(env.obs[b], plain.obs[b])
                assert done == (env.terminated[b] or env.truncated[b])
                assert env.terminated[b] == (env.fields.food_levels[b].sum() == 0)
                steps += 1
                running[b] = not done
                if not done and steps % shuffle_every == 0:
                    running[b] = not _put_elsewhere(env, plain, references[b], b, rng)
    return steps


def _put_elsewhere(env, plain, reference, b, rng):
    """Moves all players of field b in all three; one step of nothing shows it, and may be the
    last: returns whether it was.
    """
    places = free_places(env, b, rng)
    reference.place(places)
    for one in (env, plain):
        one.fields.positions[b] = places
        one.step(np.zeros((one.n_envs, one.n_agents), dtype=np.int64), np.arange(one.n_envs) == b)
    return reference.step([NONE] * env.n_agents)[1]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("reference", [Plain, Package])
def test_steps_are_those_of(reference, name):
    assert compare(reference, name, n_episodes=6) > 60


def test_what_the_comparison_has_seen():
    """Foods loaded alone and together, failed attempts, fields emptied, and cells shared."""
    env, actors = LevelBasedForaging(16, 3, "6x6-5p-2f-pen"), Actors(4)
    shared = swapped = together = 0
    failed, loaded, cleared = (
        env.info[key] for key in ("failed_loads", "foods_loaded", "all_food_loaded")
    )
    totals = np.zeros(3)
    for _ in range(10):
        env.reset()
        returns = np.zeros(16)
        while (running := ~(env.terminated | env.truncated)).any():
            before = env.fields.positions.copy()
            env.step(np.stack([actors(env, b) for b in range(16)]), running)
            returns[running] += env.reward[running].sum(axis=1)
            together += ((env.reward > 0).sum(axis=1) > 1)[running].sum()
            after = env.fields.positions
            shared += sum(len(np.unique(one, axis=0)) < 5 for one in after)
            swapped += (
                (after[:, :2] == before[:, 1::-1]).all(axis=(1, 2))
                & (before[:, 0] != before[:, 1]).any(axis=1)
            ).sum()
        totals += [failed.sum(), loaded.sum(), cleared.sum()]
        assert (cleared == env.terminated).all()
        # every field that was emptied paid 1, less the penalties
        assert (returns[env.terminated] <= 1 + 1e-5).all()
        assert np.allclose(returns[env.terminated & (failed == 0)], 1)
    assert totals.min() > 10
    assert min(shared, swapped, together) > 5


def test_names_are_those_of_lbforaging():
    pytest.importorskip("lbforaging")
    registry = importlib.import_module("gymnasium").registry
    importlib.import_module("lbforaging").register_grid_envs()
    ids = [key for key in registry if key.startswith("Foraging-")]
    assert len(ids) > 5000
    for key in ids:
        wanted = {"normalize_reward": True, "observe_agent_levels": True, "penalty": 0.0}
        wanted |= registry[key].kwargs
        assert keywords(key) == wanted, key
        assert keywords(f"lbforaging:{key}") == wanted


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("8x8-2p-2f-coop", Task((8, 8), 2, 2, force_coop=True)),
        ("Foraging-2s-10x10-3p-3f-v3", Task((10, 10), 3, 3, sight=2)),
        ("lbforaging:Foraging-15x15-4p-5f-v3", Task((15, 15), 4, 5)),
        ("5x9-3p-1f-ind-pen", Task((5, 9), 3, 1, max_food_level=1, penalty=0.1)),
        ("Foraging-grid-3s-8x8-2p-3f-coop-v3", Task((8, 8), 2, 3, 3, True, grid_observation=True)),
    ],
)
def test_names(name, task):
    assert parse_name(name) == task
    assert LevelBasedForaging(1, 0, name).task == task


def test_what_is_given_counts_more_than_the_name():
    env = LevelBasedForaging(
        2, 0, "2s-8x8-2p-2f-coop-pen", field_size=[5, 7], players=3, max_num_food=1, sight=1,
        force_coop=False, penalty=0.0, max_food_level=3, grid_observation=True, time_limit=9,
    )  # fmt: skip
    assert env.task == Task((5, 7), 3, 1, 1, False, None, 0.0, True)
    assert env.rules.food_high.tolist() == [3]
    assert (env.n_agents, env.obs_size, env.state_size, env.episode_limit) == (3, 27, 81, 9)


def test_all_actions_are_available_unless_they_are_masked():
    for masked in (False, True):
        env = LevelBasedForaging(4, 1, action_mask=masked)
        env.reset()
        assert env.avail_actions.all() != masked


@pytest.mark.parametrize("ends", [False, True])
def test_the_time_limit_is_a_cut_or_an_end(ends):
    env = LevelBasedForaging(3, 0, time_limit=2, time_limit_ends=ends)
    env.reset()
    for over in (False, True):
        env.step(np.zeros((3, 2), dtype=np.int64))
        assert (env.terminated == (over and ends)).all()
        assert (env.truncated == (over and not ends)).all()
    assert not env.info["all_food_loaded"].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"map_name": "8x8"}, "lbf: unknown map_name '8x8'; names are built like 8x8-2p-2f-coop"),
        ({"map_name": "Foraging-8x8-2p-2f-v2"}, "version 2 of the rules, but there is only 3"),
        ({"map_name": "2x8-2p-2f"}, "env_args.field_size must be a whole number of at least 3"),
        ({"map_name": "8x8-0p-2f"}, "env_args.players must be a whole number of at least 1, got 0"),
        ({"field_size": [8, 8, 8]}, "env_args.field_size must be .*or two: rows and columns, got"),
        ({"players": 33}, "33 players are too many for 8 x 8 cells"),
        ({"penalty": -0.1}, "env_args.penalty must be a finite number of at least 0, got -0.1"),
        ({"min_player_level": [1, 1, 1]}, "as many as there are players (2), got [1, 1, 1]"),
        (
            {"min_player_level": 3},
            "min_player_level [3, 3] must not be above max_player_level [2, 2]",
        ),
        ({"min_food_level": 0}, "min_food_level must be a whole number of at least 1, or a list"),
        (
            {"min_food_level": [2, 3], "max_food_level": 2},
            "[2, 3] must not be above max_food_level",
        ),
        (
            {"min_food_level": 3, "force_coop": False},
            "min_food_level [3, 3] must not be above 2, the sum of the three weakest",
        ),
        ({"time_limit": 0}, "env_args.time_limit must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(given, message):
    pattern = message if "*" in message else re.escape(message)
    with pytest.raises(ConfigError, match=pattern) as caught:
        make_vector_env("lbf", given, 1, 1, "native", "train_env")
    assert "\n" not in str(caught.value)


def test_a_crowded_field_gets_fewer_foods():
    env = LevelBasedForaging(8, 0, "4x4-2p-9f")
    env.reset()
    assert ((env.fields.food_levels > 0).sum(axis=1) < 4).all()
    assert (env.fields.food_levels > 0).any(axis=1).all()

"""Treasure collection against plain loops, its events by hand, and the return of a random policy on
the original.
"""

from __future__ import annotations

import numpy as np
import pytest
from particle_fixtures import Body, returns, standard_error, step_bodies

from envs import make_vector_env
from envs.particle.treasure_collection import TreasureCollection
from utils.errors import ConfigError


def length(vector):
    return float(np.sqrt(vector[0] ** 2 + vector[1] ** 2))


def one_hot(which, size):
    return [float(k == which) for k in range(size)]


class Reference:
    """One world, from the description of the task; begins where world b of `env` is now."""

    def __init__(self, env, b):
        self.env, self.b, self.mask = env, b, env.mask_dead_treasures
        self.h, self.c = env.n_hunters, env.n_banks
        self.agents = [
            Body(
                env.positions[b, i].copy(), np.zeros(2), 2.25, 1.0 if i < self.h else 2.25, 1.0,
                0.05 if i < self.h else 0.075, group=0,
            )
            for i in range(env.n_agents)
        ]  # fmt: skip
        self.hunters, self.banks = self.agents[: self.h], self.agents[self.h :]
        self.treasures = [
            {"position": place.copy(), "colour": int(colour), "alive": True}
            for place, colour in zip(env.treasures[b], env.colours[b], strict=True)
        ]
        self.holding = [None if held < 0 else held for held in env.holding[b].tolist()]
        self.events = {"pick_ups": 0, "deliveries": 0, "collisions": 0}

    def touch(self, hunter, treasure):
        return treasure["alive"] and length(hunter.position - treasure["position"]) < 0.05 + 0.025

    def step(self, actions):
        step_bodies(self.agents, actions)
        self.rewards, self.seen, self.seen_state = self.reward(), self.observations(), self.state()
        for treasure in self.treasures:
            if treasure["alive"]:
                for i, hunter in enumerate(self.hunters):
                    if self.holding[i] is None and self.touch(hunter, treasure):
                        self.holding[i] = treasure["colour"]
                        treasure["alive"], treasure["position"] = False, np.array([-999.0, -999.0])
                        self.events["pick_ups"] += 1
                        break
            else:
                treasure["alive"] = True
                treasure["position"] = None
        for i, hunter in enumerate(self.hunters):
            if self.holding[i] is not None and self.at_bank(i, hunter):
                self.holding[i] = None
                self.events["deliveries"] += 1

    def take_births(self):
        """Chance decides where treasures come back: that is taken from the environment."""
        for k, treasure in enumerate(self.treasures):
            if treasure["position"] is None:
                treasure["position"] = self.env.treasures[self.b, k].copy()
                treasure["colour"] = int(self.env.colours[self.b, k])
                assert np.abs(treasure["position"]).max() <= 0.95

    def at_bank(self, i, hunter):
        return length(hunter.position - self.banks[self.holding[i]].position) < 0.05 + 0.075

    def reward(self):
        rewards, shared = [], 0.0
        for i, hunter in enumerate(self.hunters):
            if self.holding[i] is None:
                shared += 5 * sum(self.touch(hunter, treasure) for treasure in self.treasures)
            elif self.at_bank(i, hunter):
                shared += 5
        for i, hunter in enumerate(self.hunters):
            reward = shared
            for k, other in enumerate(self.hunters):
                if k != i and length(hunter.position - other.position) < 0.1:
                    reward -= 5
                    self.events["collisions"] += 0.5
            if self.holding[i] is None:
                ways = [
                    length(hunter.position - treasure["position"])
                    for treasure in self.treasures
                    if treasure["alive"] or not self.mask
                ]
                reward -= 0.1 * min(ways, default=0.0)
            else:
                reward -= 0.1 * length(hunter.position - self.banks[self.holding[i]].position)
            rewards.append(reward)
        for colour, bank in enumerate(self.banks):
            ways = [
                length(h.position - bank.position)
                for i, h in enumerate(self.hunters)
                if self.holding[i] == colour
            ]
            if ways:
                rewards.append(shared - 0.1 * min(ways))
            else:
                mean = np.mean([h.position - bank.position for h in self.hunters], axis=0)
                rewards.append(shared - 0.1 * length(mean))
        return rewards

    def encoding(self, k):
        if k < self.h:
            return [*one_hot(self.holding[k], self.c), *[0.0] * self.c]
        return [*[0.0] * self.c, *one_hot(k - self.h, self.c)]

    def observations(self):
        rows = []
        for i, agent in enumerate(self.agents):
            row = [*agent.position, *agent.velocity]
            if i < self.h:
                row += one_hot(self.holding[i], self.c)
            others = [k for k in range(len(self.agents)) if k != i]
            for k in sorted(others, key=lambda k: length(self.agents[k].position - agent.position)):
                other = self.agents[k]
                row += [*(other.position - agent.position), *other.velocity, *self.encoding(k)]
            alive = [one for one in self.treasures if one["alive"]]
            dead = [one for one in self.treasures if not one["alive"]]
            for treasure in (
                sorted(alive, key=lambda one: length(one["position"] - agent.position)) + dead
            ):
                if treasure["alive"] or not self.mask:
                    row += [
                        *(treasure["position"] - agent.position),
                        *one_hot(treasure["colour"], self.c),
                    ]
                else:
                    row += [0.0] * (2 + self.c)
            if i >= self.h:
                row += [0.0] * self.c
            rows.append(row)
        return np.array(rows)

    def state(self):
        values = [x for agent in self.agents for x in (*agent.position, *agent.velocity)]
        for held in self.holding:
            values += one_hot(held, self.c)
        for treasure in self.treasures:
            if treasure["alive"] or not self.mask:
                values += [*treasure["position"], *one_hot(treasure["colour"], self.c)]
            else:
                values += [0.0] * (2 + self.c)
        return np.array(values)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("sizes", [(6, 2, 6), (4, 3, 2)])
def test_every_step_against_loops(sizes, mask):
    n_hunters, n_banks, n_treasures = sizes
    env = TreasureCollection(
        6,
        2,
        n_hunters=n_hunters,
        n_banks=n_banks,
        n_treasures=n_treasures,
        mask_dead_treasures=mask,
    )
    env.reset()
    # a small start area and full hands: there are many contacts
    rng = np.random.default_rng(1)
    env.positions *= 0.3
    env.treasures *= 0.3
    env.holding[:] = rng.integers(-1, n_banks, env.holding.shape)
    worlds = [Reference(env, b) for b in range(6)]
    for t in range(100):
        actions = rng.integers(0, 5, (6, env.n_agents))
        env.step(actions)
        for b, world in enumerate(worlds):
            world.step(actions[b])
            world.take_births()
            np.testing.assert_allclose(env.reward[b], world.rewards, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(env.obs[b], world.seen, rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(env.state[b], world.seen_state, rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(
                env.positions[b], [a.position for a in world.agents], rtol=0, atol=1e-7
            )
            assert env.holding[b].tolist() == [-1 if one is None else one for one in world.holding]
            assert env.alive[b].tolist() == [one["alive"] for one in world.treasures]
            for name, count in world.events.items():
                assert env.info[name][b] == count
        assert env.truncated.all() == (t == 99)
    for name, least in (("pick_ups", 5), ("deliveries", 2), ("collisions", 5)):
        assert env.info[name].sum() >= least


def still(**overrides):
    """One world: all agents and treasures far from each other, nothing moves; and the action of
    doing nothing.
    """
    env = TreasureCollection(1, 0, **overrides)
    env.reset()
    env.positions[0] = [[10.0 * i, 0.0] for i in range(8)]
    env.treasures[0] = [[10.0 * k, 100.0] for k in range(6)]
    env.colours[0] = [0, 1, 0, 1, 0, 1]
    return env, np.zeros((1, 8), dtype=int)


def test_taking_by_hand():
    env, rest = still()
    env.treasures[0, 0] = env.treasures[0, 1] = env.positions[0, 2] + [0.07, 0.0]
    env.positions[0, 3] = env.positions[0, 2] + [0.14, 0.0]
    env.step(rest)
    # hunters 2 and 3 touch both treasures, 4 contacts; hunter 2 takes the first one, hunter 3 the
    # second one
    assert env.holding[0].tolist() == [-1, -1, 0, 1, -1, -1]
    assert env.alive[0].tolist() == [False, False, True, True, True, True]
    assert env.reward[0, 2] == pytest.approx(20 - 0.007)
    assert env.reward[0, 3] == pytest.approx(20 - 0.007)
    assert env.reward[0, 0] == pytest.approx(20 - 0.1 * np.hypot(20.07, 0), abs=1e-4)
    assert env.info["pick_ups"].tolist() == [2]
    # the observation still shows the treasures and empty hands
    assert not env.obs[0, 2, 4:6].any()
    np.testing.assert_allclose(env.obs[0, 2, -24:-20], [0.07, 0, 1, 0], atol=1e-6)
    env.step(rest)
    assert env.obs[0, 2, 4:6].tolist() == [1, 0]
    assert env.obs[0, 3, 4:6].tolist() == [0, 1]
    np.testing.assert_allclose(env.obs[0, 2, -8:], [-1019, -999, 1, 0, -1019, -999, 0, 1])
    # a loaded hunter is drawn to its bank: agent 6, 40 to its right, and for hunter 3 agent 7
    np.testing.assert_allclose(env.reward[0, [2, 3]], [-4.0, -0.1 * (70 - 20.14)], rtol=1e-6)
    # the bank of colour 0 to its nearest loaded hunter
    assert env.reward[0, 6] == pytest.approx(-4.0)
    assert env.alive.all()
    assert (np.abs(env.treasures[0, :2]) <= 0.95).all()
    env.step(rest)
    assert (env.obs[0, 2, -24:] > -100).all()


def test_a_loaded_hunter_takes_nothing_and_an_empty_one_only_one():
    env, rest = still()
    env.holding[0, 0] = 1
    env.treasures[0, 0] = env.positions[0, 0]
    env.treasures[0, 1] = env.treasures[0, 2] = env.positions[0, 1]
    env.step(rest)
    assert env.holding[0].tolist() == [1, 1, -1, -1, -1, -1]
    assert env.alive[0].tolist() == [True, False, True, True, True, True]
    assert env.info["pick_ups"].tolist() == [1]


def test_unloading_by_hand():
    env, rest = still()
    env.holding[0, :3] = [0, 1, 1]
    # both come within 0.115 of bank 6 in this step; hunter 0 holds its colour
    env.positions[0, 0] = env.positions[0, 6] + [0.0, 0.13]
    env.positions[0, 1] = env.positions[0, 6] - [0.0, 0.13]
    env.velocities[0, :2] = [[0, -0.2], [0, 0.2]]
    env.step(rest)
    assert env.holding[0].tolist() == [-1, 1, 1, -1, -1, -1]
    assert env.info["deliveries"].tolist() == [1]
    assert env.info["pick_ups"].tolist() == [0]
    assert env.reward[0, 0] == pytest.approx(5 - 0.1 * 0.115, abs=1e-3)
    # hunter 1 and, nearest to it, hunter 2 hold the colour of bank 7
    assert env.reward[0, 1] == pytest.approx(5 - 0.1 * np.hypot(10, 0.115), abs=1e-3)
    assert env.reward[0, 7] == pytest.approx(5 - 0.1 * np.hypot(10, 0.115), abs=1e-3)
    # from empty hunter 4 to treasure 4; the others are nowhere near anything
    assert env.reward[0, 4] == pytest.approx(5 - 0.1 * 100)


def test_heavy_banks_give_way_less():
    env, rest = still()
    env.positions[0, 0] = env.positions[0, 6] + [0.0, 0.1]
    env.step(rest)
    speeds = env.velocities[0, [0, 6], 1]
    np.testing.assert_allclose(speeds, [0.25, -0.25 / 2.25], rtol=1e-6)


def test_all_treasures_dead():
    for mask, expected in ((False, -0.1 * np.hypot(1009, 999)), (True, 0.0)):
        env, rest = still(mask_dead_treasures=mask)
        env.alive[:] = False
        env.treasures[:] = -999.0
        env.step(rest)
        assert env.reward[0, 1] == pytest.approx(expected)
        assert (env.obs[0, 1, -24:] == 0).all() == mask
        assert (env.state[0, -24:] == 0).all() == mask


def test_starts_and_births_are_uniform():
    n = 4000
    env = TreasureCollection(n, 3)
    env.reset()
    starts, colours = env.treasures.copy(), env.colours.copy()
    assert env.alive.all()
    assert (env.holding == -1).all()
    env.alive[:] = False
    env.step(np.zeros((n, 8), dtype=int))
    for places, kinds in ((starts, colours), (env.treasures, env.colours)):
        assert np.abs(places).max() <= 0.95
        assert np.abs((places**2).mean(axis=(0, 1)) / 0.95**2 - 1 / 3).max() < 0.01
        assert np.abs(places.mean(axis=0)).max() < 0.95 * 5 / np.sqrt(3 * n)
        assert sorted(np.unique(kinds)) == [0, 1]
        assert np.abs(kinds.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(n)
        # each of the six has its own place and colour
        drawn = np.concatenate([places.reshape(n, 12), kinds], axis=1)
        assert np.abs(np.corrcoef(drawn.T) - np.eye(18)).max() < 5 / np.sqrt(n)
    assert abs(np.corrcoef(starts[:, 0, 0], env.treasures[:, 0, 0])[0, 1]) < 5 / np.sqrt(n)
    first = env.treasures.copy()
    env.alive[:] = False
    env.step(np.zeros((n, 8), dtype=int))
    assert abs(np.corrcoef(first[:, 0, 0], env.treasures[:, 0, 0])[0, 1]) < 5 / np.sqrt(n)


def test_worlds_depend_on_seed_and_number_only():
    """Over whole episodes in which treasures come back."""
    few, many = TreasureCollection(2, 9), TreasureCollection(5, 9)
    actions = np.random.default_rng(0).integers(0, 5, (200, 5, 8))
    for env in (few, many):
        env.reset()
    picked = 0
    for action in actions:
        few.step(action[:2])
        many.step(action)
        assert np.array_equal(few.obs, many.obs[:2])
        assert np.array_equal(few.reward, many.reward[:2])
        if many.truncated.all():
            picked += few.info["pick_ups"].sum()
            few.reset()
            many.reset()
    assert picked > 0


def test_random_return_is_that_of_the_original():
    """Sum over the agents, uniform random policy; measured on the original: -6.8, standard error
    3.4.
    """
    total = returns(TreasureCollection(2048, 1), 2048).sum(axis=1)
    assert abs(total.mean() + 6.8) < 3 * np.hypot(3.4, standard_error(total))


def test_sizes_and_common_reward():
    apart, common = TreasureCollection(2, 4), TreasureCollection(2, 4, common_reward=True)
    assert apart.obs_sizes == (86,) * 6 + (84,) * 2
    assert apart.action_sizes == (5,) * 8
    assert (apart.state_size, apart.episode_limit) == (68, 100)
    assert apart.individual_rewards
    assert not common.individual_rewards
    actions = np.random.default_rng(1).integers(0, 5, (2, 8))
    for env in (apart, common):
        env.reset()
        env.step(actions)
    np.testing.assert_allclose(common.reward, apart.reward.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_hunters": 0}, "env_args.n_hunters must be a whole number of at least 1, got 0"),
        ({"n_banks": 0}, "env_args.n_banks must be a whole number from 1 to 7, got 0"),
        ({"n_banks": 8}, "env_args.n_banks must be a whole number from 1 to 7, got 8"),
        ({"n_treasures": -1}, "env_args.n_treasures must be a whole number of at least 1, got -1"),
        (
            {"episode_limit": 0},
            "env_args.episode_limit must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ConfigError) as error:
        make_vector_env("treasure_collection", wrong, 2, 1, "native", "train_env")
    assert str(error.value) == message


def test_picture_shows_what_hunters_hold_and_no_dead_treasures():
    env, _ = still()
    env.positions[0, 0] = [0.0, 0.0]
    empty = env.render()
    env.holding[0, 0] = 1
    loaded = env.render()
    middle = empty.shape[0] // 2
    assert (empty[middle, middle] == 255).all()
    assert loaded[middle, middle].tolist() == [230, 159, 0]
    env.treasures[0, 0] = [0.5, 0.5]
    with_treasure = env.render()
    assert not np.array_equal(with_treasure, loaded)
    env.alive[0, 0] = False
    assert np.array_equal(env.render(), loaded)

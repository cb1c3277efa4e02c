"""Spread against the mpe2 package step by step, its maps against plain loops, the physics against
hand-made numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpe2 import simple_spread_v3
from mpe2._mpe_utils.core import World
from particle_fixtures import Body, step_bodies

from envs import make_vector_env
from envs.particle.drawing import HALF_WIDTH, PALETTE
from envs.particle.spread import Spread
from utils.config import load_file
from utils.errors import ConfigError


def velocity_first(world, p_force):
    """mpe2's integration with the position moved after the velocity, as in the original
    environments.
    """
    for entity, force in zip(world.entities, p_force, strict=True):
        if entity.movable:
            entity.state.p_vel = (
                entity.state.p_vel * (1 - world.damping) + force / entity.mass * world.dt
            )
            entity.state.p_pos = entity.state.p_pos + entity.state.p_vel * world.dt


def place(env, positions, landmarks, velocities=None):
    """Puts agents and landmarks of all worlds somewhere: [B, A, 2] each."""
    env.reset()
    env.positions[:], env.landmarks[:] = positions, landmarks
    env.velocities[:] = 0.0 if velocities is None else velocities


@pytest.mark.parametrize("integrator", ["explicit", "semi_implicit"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_trajectories_and_rewards_are_those_of_mpe2(n, integrator, monkeypatch):
    if integrator == "semi_implicit":
        monkeypatch.setattr(World, "integrate_state", velocity_first)
    seeds = range(12)
    env = Spread(len(seeds), 0, n_agents=n, integrator=integrator)
    # the odd ones begin in a crowd
    widths = [0.3 if seed % 2 else 1.0 for seed in seeds]
    starts = [
        np.random.default_rng(seed).uniform(-w, w, (2 * n, 2))
        for seed, w in zip(seeds, widths, strict=True)
    ]
    place(env, [start[:n] for start in starts], [start[n:] for start in starts])
    actions = np.random.default_rng(7).integers(0, 5, (25, len(seeds), n))
    originals = []
    for start in starts:
        original = simple_spread_v3.parallel_env(N=n, local_ratio=0.5, max_cycles=25)
        original.reset(seed=0)
        world = original.unwrapped.world
        for entity, where in zip(world.entities, start, strict=True):
            entity.state.p_pos = where.copy()
        originals.append((original, world))
    collisions = np.zeros(len(seeds))
    for t in range(25):
        env.step(actions[t])
        for b, (original, world) in enumerate(originals):
            obs, rewards, _, truncated, _ = original.step(
                dict(zip(original.agents, actions[t, b].tolist(), strict=True))
            )
            for i, agent in enumerate(world.agents):
                np.testing.assert_allclose(
                    env.positions[b, i], agent.state.p_pos, rtol=0, atol=1e-9
                )
                np.testing.assert_allclose(
                    env.velocities[b, i], agent.state.p_vel, rtol=0, atol=1e-8
                )
                np.testing.assert_allclose(env.obs[b, i], obs[f"agent_{i}"], rtol=0, atol=1e-6)
                # mpe2 takes half of each part of the reward, and does not count an agent's contact
                # with itself
                assert env.reward[b, i] == pytest.approx(2 * rewards[f"agent_{i}"] - 1, abs=1e-5)
                collisions[b] += sum(
                    original.unwrapped.scenario.is_collision(agent, other)
                    for other in world.agents[i + 1 :]
                )
            assert all(truncated.values()) == env.truncated[b] == (t == 24)
    assert collisions.sum() >= 5
    assert env.info["collisions"].tolist() == collisions.tolist()


OWN_LANDMARKS = {
    "spread3_sep": [[0], [1], [2]],
    "spread3_mix": [[0, 2], [1], [0, 2]],
    "spread3_ful": [[0, 1, 2]] * 3,
}
MATES = {
    "spread3_sep": [[], [], []],
    "spread3_mix": [[2], [], [0]],
    "spread3_ful": [[1, 2], [0, 2], [0, 1]],
}


@pytest.mark.parametrize("count_self", [True, False])
@pytest.mark.parametrize("name", OWN_LANDMARKS)
def test_maps_of_appendix_d_against_loops(name, count_self):
    n_envs, rng = 6, np.random.default_rng(3)
    env = Spread(n_envs, 1, map_name=name, count_self_collision=count_self)
    starts, landmarks = rng.uniform(-0.4, 0.4, (2, n_envs, 3, 2))
    place(env, starts, landmarks)
    groups = {"spread3_sep": [0, 1, 2], "spread3_mix": [0, 1, 0], "spread3_ful": [0, 0, 0]}[name]
    worlds = [
        [
            Body(start, np.zeros(2), 5.0, radius=0.15, group=g)
            for start, g in zip(one, groups, strict=True)
        ]
        for one in starts
    ]
    collisions = np.zeros(n_envs)
    for t in range(25):
        actions = rng.integers(0, 5, (n_envs, 3))
        env.step(actions)
        for b, bodies in enumerate(worlds):
            step_bodies(bodies, actions[b])
            covered = 0
            for i, body in enumerate(bodies):
                mates = MATES[name][i]
                reward = 0.0
                for landmark in OWN_LANDMARKS[name][i]:
                    reward -= min(
                        np.linalg.norm(bodies[j].position - landmarks[b, landmark])
                        for j in [i, *mates]
                    )
                for other in mates:
                    if np.linalg.norm(body.position - bodies[other].position) < 0.3:
                        reward -= 1
                        collisions[b] += 0.5
                if count_self and mates:
                    reward -= 1
                assert env.reward[b, i] == pytest.approx(reward, abs=1e-5), (t, b, i)
                others = [j for j in range(3) if j != i]
                obs = np.concatenate(
                    [
                        body.velocity,
                        body.position,
                        *(landmarks[b] - body.position),
                        *(bodies[j].position - body.position for j in others),
                        np.zeros(4),
                    ]
                )
                np.testing.assert_allclose(env.obs[b, i], obs, rtol=0, atol=1e-5)
                # landmark i belongs to agent i's group
                covered += (
                    min(np.linalg.norm(bodies[j].position - landmarks[b, i]) for j in [i, *mates])
                    < 0.1
                )
            state = [
                *(x for o in bodies for x in (*o.position, *o.velocity)),
                *landmarks[b].ravel(),
            ]
            np.testing.assert_allclose(env.state[b], state, rtol=0, atol=1e-5)
            assert env.info["landmarks_covered"][b] == covered
    assert env.info["collisions"].tolist() == collisions.tolist()
    assert (collisions.sum() > 0) == (name != "spread3_sep")


def test_moves_and_contacts_by_hand():
    env = Spread(1, 0)
    far = np.array([[[0.0, 0.0], [5.0, 5.0]]])
    for action, (x, y) in enumerate([(0, 0), (-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)]):
        place(env, far, np.zeros((1, 2, 2)))
        env.step(np.array([[action, 0]]))
        np.testing.assert_allclose(env.velocities[0, 0], [x, y], atol=1e-12)
        np.testing.assert_allclose(env.positions[0, 0], [0.1 * x, 0.1 * y], atol=1e-12)
        env.step(np.array([[action, 0]]))
        np.testing.assert_allclose(env.velocities[0, 0], [1.75 * x, 1.75 * y], atol=1e-12)
        np.testing.assert_allclose(env.positions[0, 0], [0.275 * x, 0.275 * y], atol=1e-12)
    # an overlap of 0.1 pushes with 100 * 0.1, which is a speed of 1 after 0.1 s
    place(env, [[[0.0, 0.0], [0.0, 0.2]]], np.zeros((1, 2, 2)))
    env.step(np.zeros((1, 2), dtype=int))
    np.testing.assert_allclose(env.velocities[0], [[0, -1], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(env.positions[0], [[0, -0.1], [0, 0.3]], atol=1e-12)
    # then they are 0.4 apart: no collision; both landmarks are 0.1 from agent 0
    np.testing.assert_allclose(env.reward[0], [-1.2, -1.2], atol=1e-6)
    # at a distance of exactly the radii the push is 100 * 0.001 * log 2
    place(env, [[[0.0, 0.0], [0.3, 0.0]]], np.zeros((1, 2, 2)))
    env.step(np.zeros((1, 2), dtype=int))
    np.testing.assert_allclose(
        env.velocities[0, :, 0], [-0.01 * np.log(2), 0.01 * np.log(2)], atol=1e-9
    )
    # two bodies in one place do not push
    place(env, np.zeros((1, 2, 2)), np.zeros((1, 2, 2)))
    env.step(np.zeros((1, 2), dtype=int))
    assert not env.positions.any()
    np.testing.assert_allclose(env.reward[0], [-2, -2])


def test_starts_are_uniform_and_at_rest():
    env = Spread(4000, 5, n_agents=3)
    env.reset()
    assert not env.velocities.any()
    places = np.concatenate([env.positions, env.landmarks], axis=1)
    assert places.min() >= -1
    assert places.max() <= 1
    flat = places.reshape(4000, 12)
    assert np.abs(flat.mean(axis=0)).max() < 5 / np.sqrt(3 * 4000)
    assert np.abs((flat**2).mean(axis=0) - 1 / 3).max() < 5 * np.sqrt(4 / 45 / 4000)
    assert np.abs(np.corrcoef(flat.T) - np.eye(12)).max() < 5 / np.sqrt(4000)


def test_worlds_depend_on_seed_and_number_only():
    few, many = Spread(2, 9), Spread(7, 9)
    actions = np.random.default_rng(0).integers(0, 5, (60, 7, 2))
    for env in (few, many):
        env.reset()
    for action in actions:
        few.step(action[:2])
        many.step(action)
        assert np.array_equal(few.obs, many.obs[:2])
        assert np.array_equal(few.reward, many.reward[:2])
        if many.truncated.all():
            few.reset()
            many.reset()


def test_common_reward_is_the_sum():
    apart, common = Spread(3, 2, n_agents=3), Spread(3, 2, n_agents=3, common_reward=True)
    assert apart.individual_rewards
    assert not common.individual_rewards
    for env in (apart, common):
        env.reset()
    for action in np.random.default_rng(1).integers(0, 5, (25, 3, 3)):
        apart.step(action)
        common.step(action)
        assert common.reward.shape == (3,)
        np.testing.assert_allclose(common.reward, apart.reward.sum(axis=1), rtol=1e-6)


def test_actions_may_come_in_any_memory_order():
    plain, turned = Spread(4, 2), Spread(4, 2)
    for env in (plain, turned):
        env.reset()
    actions = np.random.default_rng(1).integers(0, 5, (4, 2))
    plain.step(actions)
    turned.step(np.asfortranarray(actions.astype(np.int32)))
    assert np.array_equal(plain.obs, turned.obs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"map_name": "spread3_mx"},
            "spread: unknown map_name 'spread3_mx'; did you mean 'spread3_mix'",
        ),
        ({"n_agents": 1}, "env_args.n_agents must be a whole number of at least 2, got 1"),
        ({"n_agents": "two"}, "env_args.n_agents must be a whole number of at least 2, got 'two'"),
        (
            {"n_agents": 2, "map_name": "spread3_sep"},
            "spread: n_agents is 2, but map_name=spread3_sep has 3",
        ),
        (
            {"episode_limit": 0},
            "env_args.episode_limit must be a whole number of at least 1, got 0",
        ),
        (
            {"integrator": "euler"},
            "env_args.integrator must be one of semi_implicit, explicit, got 'euler'",
        ),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ConfigError) as error:
        make_vector_env("spread", wrong, 2, 1, "native", "train_env")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OWN_LANDMARKS)
def test_configs_of_the_maps_differ_from_spread_in_the_map_only(name):
    folder = Path(__file__).parents[2] / "src" / "config" / "envs"
    base, config = (load_file(folder / f"{one}.yaml") for one in ("spread", name))
    assert config == {"env": "spread", "env_args": {**base["env_args"], "map_name": name}}
    with make_vector_env(config["env"], config["env_args"], 2, 1, "native", "train_env") as env:
        assert (env.n_agents, env.obs_size, env.state_size) == (3, 18, 18)


def test_sizes_with_two_agents():
    env = Spread(1, 0)
    assert (env.n_agents, env.n_actions, env.obs_size, env.state_size, env.episode_limit) == (
        2,
        5,
        12,
        12,
        25,
    )


def pixel(picture, x, y):
    """The colour at a point of the plane."""
    height, width = picture.shape[:2]
    at = (
        int((HALF_WIDTH - y) / (2 * HALF_WIDTH) * height),
        int((x + HALF_WIDTH) / (2 * HALF_WIDTH) * width),
    )
    return tuple(picture[at].tolist())


def test_picture_shows_agents_where_they_are():
    env = Spread(2, 0, map_name="spread3_sep")
    place(
        env,
        [[[0.5, 0.8], [-0.7, -0.2], [3.0, 0.0]]] * 2,
        [[[0.0, 0.0], [0.5, -0.5], [0.52, 0.82]]] * 2,
    )
    picture = env.render(1)
    assert picture.shape == (420, 420, 3)
    assert picture.dtype == np.uint8
    assert pixel(picture, 0.4, 0.75) == PALETTE[0]
    assert pixel(picture, -0.6, -0.25) == PALETTE[1]
    assert pixel(picture, 0.9, -0.9) == (255, 255, 255)
    # the third agent is hollow at the edge
    assert pixel(picture, HALF_WIDTH - 0.15 - 0.146, 0.0) == PALETTE[2]
    assert pixel(picture, HALF_WIDTH - 0.15 - 0.1, 0.0) == (255, 255, 255)
    # anti-aliased: there are mixed colours
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20

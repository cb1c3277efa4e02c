"""Switching Wind: the walk recomputed, the modes and their winds, both kinds of actions."""

from __future__ import annotations

import numpy as np
import pytest

from envs.switching_wind import SwitchingWind
from utils.errors import ConfigError


def walk(env: SwitchingWind, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plays an episode of continuous moves [B, T]: positions [B, T + 1], modes [B, T], rewards [B,
    T].
    """
    env.reset()
    positions, modes, rewards = [env.state[:, 0].copy()], [], []
    for t in range(moves.shape[1]):
        assert not env.truncated.any()
        env.step_continuous(moves[:, t : t + 1])
        assert np.array_equal(env.obs[:, 0, 0], env.state[:, 0])
        positions.append(env.state[:, 0].copy())
        modes.append(env.info["mode"].astype(int))
        rewards.append(env.reward.copy())
    return np.stack(positions, axis=1), np.stack(modes, axis=1), np.stack(rewards, axis=1)


def test_walk_is_action_plus_the_wind_of_the_mode():
    b = 200
    env = SwitchingWind(b, seed=1)
    moves = np.random.default_rng(0).uniform(-1, 1, (b, 60))
    positions, modes, rewards = walk(env, moves)
    assert env.truncated.all()
    assert not env.terminated.any()
    assert not positions[:, 0].any()
    assert np.array_equal(rewards, -np.abs(positions[:, 1:]))
    wind = np.diff(positions, axis=1) - moves
    for mode, (mean, std) in enumerate([(0.0, 0.1), (-1.5, 0.3), (1.5, 0.3)]):
        gusts = wind[modes == mode]
        assert len(gusts) == b * 20
        assert abs(gusts.mean() - mean) < 5 * std / np.sqrt(len(gusts)) + 1e-4
        assert abs(gusts.std() - std) < 5 * std / np.sqrt(2 * len(gusts)) + 1e-4


def test_modes_switch_every_20_steps_and_all_orders_occur():
    env = SwitchingWind(200, seed=2)
    _, modes, _ = walk(env, np.zeros((200, 60)))
    orders = set()
    for one in modes:
        blocks = one.reshape(3, 20)
        assert (blocks == blocks[:, :1]).all()
        orders.add(tuple(blocks[:, 0].tolist()))
    assert orders == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}


def test_fixed_order_and_long_episodes_never_repeat_a_mode_at_once():
    env = SwitchingWind(3, seed=3, mode_order="fixed", episode_limit=10, switch_every=2)
    _, modes, _ = walk(env, np.zeros((3, 10)))
    assert modes.tolist() == [[0, 0, 1, 1, 2, 2, 0, 0, 1, 1]] * 3
    env = SwitchingWind(50, seed=3, episode_limit=12, switch_every=2)
    _, modes, _ = walk(env, np.zeros((50, 12)))
    assert (np.diff(modes[:, ::2], axis=1) != 0).all()


def test_discrete_actions_are_evenly_spaced_moves():
    still = [[0.0, 0.0]]
    env = SwitchingWind(5, seed=4, winds=still)
    assert env.n_actions == 5
    env.reset()
    env.step(np.arange(5)[:, None])
    assert env.state[:, 0].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    env.step(np.full((5, 1), 4))
    assert env.state[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    env = SwitchingWind(2, seed=4, n_actions=2, winds=still)
    env.reset()
    env.step(np.array([[0], [1]]))
    assert env.state[:, 0].tolist() == [-1.0, 1.0]


def test_step_and_step_continuous_are_the_same_walk():
    discrete, continuous = SwitchingWind(4, seed=5), SwitchingWind(4, seed=5)
    discrete.reset()
    continuous.reset()
    rng = np.random.default_rng(1)
    running = np.ones(4, dtype=bool)
    while running.any():
        actions, mask = rng.integers(0, 5, (4, 1)), running & (rng.random(4) < 0.8)
        discrete.step(actions, mask)
        continuous.step_continuous(-1 + 0.5 * actions, mask)
        for name in ("obs", "state", "reward", "truncated"):
            assert np.array_equal(getattr(discrete, name), getattr(continuous, name))
        running &= ~discrete.truncated
    for env in (discrete, continuous):
        with pytest.raises(ValueError, match="no running episode"):
            env.step(np.zeros((4, 1), dtype=int))
        with pytest.raises(ValueError, match="no running episode"):
            env.step_continuous(np.zeros((4, 1)))


def test_bad_moves_are_refused_and_change_nothing():
    env = SwitchingWind(2, seed=6)
    env.reset()
    env.step_continuous(np.array([[0.5], [-1.0]]))
    before = env.state.copy()
    for bad, message in (
        ([[1.01], [0]], r"\[-1, 1\]"),
        ([[np.nan], [0]], r"\[-1, 1\]"),
        ([[0.0]], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step_continuous(np.array(bad))
        assert np.array_equal(env.state, before)
    env.step_continuous(np.array([[np.nan], [0.0]]), np.array([False, True]))
    assert env.state[0] == before[0]
    assert env.state[1] != before[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_actions": 1}, "n_actions must be a whole number of at least 2, got 1"),
        ({"episode_limit": 0}, "episode_limit must be .* 1, got 0"),
        ({"switch_every": 0}, "switch_every must be .* 1, got 0"),
        ({"winds": []}, "winds must be"),
        ({"winds": [[0.0, 0.1, 3]]}, "winds must be"),
        ({"winds": [[0.0, -0.1]]}, "winds must be"),
        ({"winds": ["calm"]}, "winds must be"),
        ({"mode_order": "cyclic"}, "must be one of shuffled, fixed"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SwitchingWind(1, seed=1, **arguments)

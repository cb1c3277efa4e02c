"""Matrix games: every payoff by hand, the switch of the payoff, the two-step game's tree, unequal
action sets.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs.matrix_game import MatrixGame
from utils.errors import ConfigError


def payoffs(env: MatrixGame) -> np.ndarray:
    """The payoff of every joint action of a one-step game, found by playing all of them side by
    side.
    """
    joint = np.array(list(itertools.product(*map(range, env.action_sizes))))
    assert len(joint) == env.n_envs
    env.reset()
    env.step(joint)
    assert env.terminated.all()
    return env.reward.reshape(env.action_sizes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one_step", [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]),
        ("climbing", [[8, -12, -12], [-12, 6, 0], [-12, 0, 6]]),
        ("shifting", [[8, -12, -12], [-12, 7, 0], [-12, 0, 6]]),
    ],
)
def test_presets_pay_the_papers_numbers(name, expected):
    env = MatrixGame(9, seed=1, map_name=name)
    assert np.array_equal(payoffs(env), expected)
    assert np.array_equal(env.obs, np.ones((9, 2, 1)))
    assert np.array_equal(env.state, np.ones((9, 1)))
    assert not env.truncated.any()


def test_shifting_pays_the_second_payoff_from_switch_step_on():
    before = [[8, -12, -12], [-12, 7, 0], [-12, 0, 6]]
    after = [[6, -12, -12], [-12, 5, 0], [-12, 0, 8]]
    env = MatrixGame(9, seed=1, map_name="shifting", switch_step=500)
    for t_env, expected in (
        (0, before),
        (499, before),
        (500, after),
        (10**6, after),
        (499, before),
    ):
        env.set_t_env(t_env)
        assert np.array_equal(payoffs(env), expected), t_env
    # no count of its own: playing on does not bring the switch about
    for _ in range(100):
        assert np.array_equal(payoffs(env), before)


def test_a_game_without_second_payoff_never_changes():
    env = MatrixGame(9, seed=1, map_name="climbing", switch_step=0)
    env.set_t_env(10**9)
    assert np.array_equal(payoffs(env), [[8, -12, -12], [-12, 6, 0], [-12, 0, 6]])


def test_custom_game_with_second_payoff():
    env = MatrixGame(
        4,
        seed=1,
        map_name="custom",
        payoff=[[1, 2], [3, 4]],
        payoff_after=[[5, 6], [7, 9]],
        switch_step=3,
    )
    assert np.array_equal(payoffs(env), [[1, 2], [3, 4]])
    env.set_t_env(3)
    assert np.array_equal(payoffs(env), [[5, 6], [7, 9]])


def test_two_step_game_is_the_qmix_papers():
    plays = list(
        itertools.product(range(2), repeat=4)
    )  # both agents' first actions, then both agents' second actions
    env = MatrixGame(16, seed=1, map_name="two_step")
    assert env.episode_limit == 2
    env.reset()
    assert np.array_equal(env.state, np.tile([1, 0, 0], (16, 1)))
    env.step(np.array([play[:2] for play in plays]))
    assert not env.reward.any()
    assert not env.terminated.any()
    for b, play in enumerate(plays):
        expected = [0, 1, 0] if play[0] == 0 else [0, 0, 1]
        assert env.state[b].tolist() == expected
        assert env.obs[b].tolist() == [expected, expected]
    env.step(np.array([play[2:] for play in plays]))
    for b, play in enumerate(plays):
        expected = 7 if play[0] == 0 else {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 8}[play[2:]]
        assert env.reward[b] == expected, play
    assert env.terminated.all()


def test_any_number_of_agents_and_unequal_action_sets():
    payoff = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]]
    env = MatrixGame(12, seed=1, map_name="custom", payoff=payoff)
    assert env.action_sizes == (2, 3, 2)
    assert env.n_actions == 3
    assert env.avail_actions[5].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
    assert np.array_equal(payoffs(env), payoff)


def test_repeated_play_ends_after_episode_limit_plays_and_environments_keep_their_own_count():
    env = MatrixGame(2, seed=1, map_name="climbing", episode_limit=3)
    env.reset()
    assert env.episode_limit == 3
    rewards = []
    for t in range(3):
        if t == 2:
            env.reset(np.array([False, True]))
        env.step(np.array([[0, 0], [1, t]]))
        rewards.append(env.reward.tolist())
        assert env.terminated.tolist() == [t == 2, False]
        assert env.obs.ravel().tolist() == [1.0] * 4
    assert rewards == [[8, -12], [8, 6], [8, 0]]


def test_picture_shows_the_table_of_the_state_that_was_played_in():
    env = MatrixGame(1, seed=1, map_name="two_step")
    env.reset()
    pictures = [env.render()]
    for _ in range(2):
        env.step(np.array([[1, 1]]))
        pictures.append(env.render())
    start, first, second = pictures
    # at the start nothing is framed; both agents' action 1 is the cell in the lower right
    assert (start != first)[start.shape[0] // 2 :, start.shape[1] // 2 :].any()
    # state 2B pays up to 8, the start pays nothing: other colours
    assert (first != second).any(axis=2).mean() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"map_name": "climbin"}, "did you mean 'climbing'"),
        ({"map_name": "custom"}, "needs env_args.payoff"),
        ({"map_name": "climbing", "payoff": [[1]]}, "map_name=custom only"),
        ({"map_name": "one_step", "payoff_after": [[1]]}, "map_name=custom only"),
        ({"map_name": "custom", "payoff": [[1, 2], [3]]}, "nested lists"),
        ({"map_name": "custom", "payoff": []}, "nested lists"),
        ({"map_name": "custom", "payoff": 3}, "nested lists"),
        ({"map_name": "custom", "payoff": [["a", "b"]]}, "nested lists"),
        ({"map_name": "custom", "payoff": [[1.0, float("nan")]]}, "nested lists"),
        (
            {"map_name": "custom", "payoff": [[1, 2]], "payoff_after": [[1], [2]]},
            r"\[2, 1\], payoff has \[1, 2\]",
        ),
        ({"switch_step": -1}, "switch_step must be .* 0, got -1"),
        ({"episode_limit": 0}, "episode_limit must be .* 1, got 0"),
        ({"episode_limit": "ten"}, "episode_limit must be .* 1, got 'ten'"),
        ({"map_name": "two_step", "episode_limit": 3}, "two_step always takes 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MatrixGame(1, seed=1, **arguments)
    assert "\n" not in str(caught.value)

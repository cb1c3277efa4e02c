"""Hint: goals, rewards and what each agent sees; who is told the goal gets everything."""

import numpy as np
import pytest

from envs.hint import Hint
from utils.errors import ConfigError


def play(env, choose):
    """Returns [B] of one episode under `choose(env) -> actions [B, A]`."""
    env.reset()
    returns = np.zeros(env.n_envs)
    while not env.truncated.any():
        env.step(choose(env))
        returns += env.reward
    assert env.truncated.all()
    assert not env.terminated.any()
    return returns


def as_told(env):
    """Everybody knows what the guide sees."""
    goals = env.obs[:, 0].reshape(env.n_envs, env.n_agents - 1, env.n_actions).argmax(-1)
    return np.concatenate([np.zeros((env.n_envs, 1), int), goals], axis=1)


def test_what_agents_see():
    env = Hint(50, seed=1, n_actors=3, n_goals=4, episode_limit=6)
    env.reset()
    for t in range(6):
        assert env.obs.shape == (50, 4, 12)
        assert np.array_equal(env.obs[:, 0], env.state)
        assert not env.obs[:, 1:].any()
        shown = env.state.reshape(50, 3, 4)
        assert np.array_equal(shown.sum(-1), np.ones((50, 3)))
        assert np.array_equal(shown.argmax(-1), env.goals[:, t])
        assert env.avail_actions[:, 0].tolist() == [[1, 0, 0, 0]] * 50
        assert env.avail_actions[:, 1:].all()
        env.step(as_told(env))


def test_rewards_are_the_share_of_goals_chosen():
    env = Hint(1, seed=2, n_actors=2, n_goals=3, episode_limit=3)
    env.reset()
    wrong = (env.goals[0] + 1) % 3
    for t, right in enumerate([2, 1, 0]):
        chosen = np.concatenate([env.goals[0, t, :right], wrong[t, right:]])
        env.step(np.array([[0, *chosen]]))
        assert env.reward[0] == right / 2
        assert env.truncated[0] == (t == 2)
    assert env.info["hits"][0] == pytest.approx(0.5)


def test_who_knows_the_goals_gets_all_and_who_does_not_one_in_n():
    env = Hint(400, seed=3, n_actors=2, n_goals=4, episode_limit=5)
    assert play(env, as_told).tolist() == [5.0] * 400
    blind = play(env, lambda env: np.tile([0, 1, 2], (env.n_envs, 1)))
    assert blind.mean() == pytest.approx(5 / 4, abs=4 * 5**0.5 * 0.31 / 20)


def test_goals_are_uniform_and_independent():
    env = Hint(500, seed=4, n_actors=2, n_goals=3, episode_limit=4)
    env.reset()
    counts = np.bincount(env.goals[:, :4].ravel(), minlength=3) / env.goals[:, :4].size
    assert counts == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (env.goals[:, 0, 0] == env.goals[:, 0, 1]).mean() == pytest.approx(1 / 3, abs=0.07)
    assert (env.goals[:, 0, 0] == env.goals[:, 1, 0]).mean() == pytest.approx(1 / 3, abs=0.07)


def test_picture():
    env = Hint(1, seed=5, n_actors=1, n_goals=3)
    env.reset()
    before = env.render()
    assert before.dtype == np.uint8
    assert before.ndim == 3
    env.step(np.array([[0, (env.goals[0, 0, 0] + 1) % 3]]))
    assert (before != env.render()).any()


@pytest.mark.parametrize("bad", [{"n_goals": 1}, {"n_actors": 0}, {"episode_limit": 0}])
def test_bad_arguments(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Hint(1, seed=0, **bad)

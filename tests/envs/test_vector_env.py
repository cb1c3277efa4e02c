"""The environment contract: the checks of VectorEnv, SingleEnv, the registries, and what both
backends make of PyMARL's lists, against a plain loop over the environments.
"""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from env_fakes import (
    BadRewardEnv,
    CountingEnv,
    EchoEnv,
    PaddedUnevenEnv,
    ReseedableEnv,
    ShiftingEnv,
    TroubleEnv,
    UnevenEnv,
)

import envs
from envs.predator_prey import PredatorPrey
from envs.serial import SerialVectorEnv
from envs.subproc import SubprocVectorEnv
from envs.vector_env import EnvSpec, SingleEnv, VectorEnv
from utils.errors import ConfigError, EnvFailure, UserError
from utils.seeding import derive_seed

SRC = Path(__file__).resolve().parents[2] / "src"


class DiceEnv(VectorEnv):
    """Native: two agents, three actions, action 2 only for agent 0; obs is the step and a dice
    roll. An episode ends after `length` steps, or is cut after 4.
    """

    def __init__(self, n_envs, seed, length=9, individual_rewards=False):
        self.length = length
        spec = EnvSpec(
            2,
            3,
            2,
            1,
            4,
            action_sizes=(3, 2),
            individual_rewards=individual_rewards,
            extra={"unit_dim": 5},
        )
        super().__init__(n_envs, spec, seed, info_keys=("roll", "odd_roll"))
        self.t = np.zeros(n_envs, dtype=int)

    def _observe(self, b):
        roll = self.rngs[b].integers(1, 7)
        self.obs[b] = [self.t[b], roll]
        self.state[b] = roll
        self.info["roll"][b] = roll
        self.info["odd_roll"][b] = roll if roll % 2 else np.nan

    def _reset(self, mask):
        for b in np.flatnonzero(mask):
            self.t[b] = 0
            self.avail_actions[b] = [[1, 1, 1], [1, 1, 0]]
            self._observe(b)

    def _step(self, actions, mask):
        assert (actions[~mask] == 0).all()
        for b in np.flatnonzero(mask):
            self.t[b] += 1
            self.terminated[b] = self.t[b] >= self.length
            self.truncated[b] = self.t[b] >= 4 and not self.terminated[b]
            self.reward[b] = actions[b] if self.individual_rewards else actions[b].sum()
            self._observe(b)


class DriftEnv(VectorEnv):
    """Native, with continuous actions: agent 0 has 2 entries, agent 1 has 1; each moves one of the
    two coordinates that the agent sees. An episode is cut after 3 steps.
    """

    def __init__(self, n_envs, seed):
        super().__init__(
            n_envs, EnvSpec(2, 2, 2, 4, 3, action_sizes=(2, 1), continuous_actions=True), seed
        )
        self.t = np.zeros(n_envs, dtype=int)

    def _reset(self, mask):
        self.t[mask] = 0
        self.obs[mask] = 0
        self.avail_actions[mask] = [[1, 1], [1, 0]]
        self.state[mask] = 0

    def _step(self, actions, mask):
        assert (actions[~mask] == 0).all()
        assert actions.dtype == np.float32
        self.t[mask] += 1
        self.obs[mask] += (actions * self.avail_actions)[mask]
        self.state[mask] = self.obs[mask].reshape(-1, 4)
        self.reward[mask] = self.obs[mask].sum((1, 2))
        self.truncated[mask] = self.t[mask] >= 3


BACKENDS = {"serial": SerialVectorEnv, "subproc": SubprocVectorEnv}


@pytest.fixture(params=BACKENDS)
def build(request):
    """Builds a vector environment of either backend; closes it after the test."""
    built = []

    def make(factory, n_envs=3, seed=11, role="train_env", max_env_restarts=5, **env_args):
        built.append(
            BACKENDS[request.param](factory, env_args, n_envs, seed, role, max_env_restarts)
        )
        return built[-1]

    yield make
    for env in built:
        env.close()


# VectorEnv


def test_arrays_and_sizes():
    env = DiceEnv(3, seed=0)
    expected = {
        "obs": ((3, 2, 2), np.float32),
        "state": ((3, 1), np.float32),
        "avail_actions": ((3, 2, 3), np.uint8),
        "reward": ((3,), np.float32),
        "terminated": ((3,), np.bool_),
        "truncated": ((3,), np.bool_),
        "failed": ((3,), np.bool_),
    }
    for name, (shape, dtype) in expected.items():
        assert getattr(env, name).shape == shape, name
        assert getattr(env, name).dtype == dtype, name
    assert DiceEnv(3, 0, individual_rewards=True).reward.shape == (3, 2)
    assert env.get_env_info() == {
        "unit_dim": 5,
        "state_shape": 1,
        "obs_shape": 2,
        "n_actions": 3,
        "n_agents": 2,
        "episode_limit": 4,
        "obs_sizes": (2, 2),
        "action_sizes": (3, 2),
        "individual_rewards": False,
        "continuous_actions": False,
    }


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_agents": 0}, "n_agents is 0"),
        ({"episode_limit": 0}, "episode_limit is 0"),
        ({"obs_sizes": (2,)}, "obs_sizes"),
        ({"obs_sizes": (2, 5)}, "obs_sizes"),
        ({"action_sizes": (0, 3)}, "action_sizes"),
    ],
)
def test_spec_refuses_sizes_that_do_not_fit(kwargs, message):
    sizes = {"n_agents": 2, "n_actions": 3, "obs_size": 4, "state_size": 5, "episode_limit": 6}
    with pytest.raises(ValueError, match=message):
        EnvSpec(**{**sizes, **kwargs})


def test_masked_calls_leave_the_others_alone():
    env = DiceEnv(3, seed=0)
    env.reset()
    env.step(np.array([[1, 1], [2, 1], [0, 0]]))
    assert env.reward.tolist() == [2, 3, 0]
    kept = {k: getattr(env, k).copy() for k in ("obs", "state", "avail_actions", "reward")}
    garbage = np.array([[99, -7], [1, 0], [99, 99]])
    env.step(garbage, mask=np.array([False, True, False]))
    assert env.reward.tolist() == [2, 1, 0]
    assert env.obs[:, 0, 0].tolist() == [1, 2, 1]
    for name, array in kept.items():
        assert (getattr(env, name)[[0, 2]] == array[[0, 2]]).all(), name

    env.reset(np.array([True, False, False]))
    assert env.obs[:, 0, 0].tolist() == [0, 2, 1]
    assert env.reward.tolist() == [0, 1, 0]
    env.reset(np.array([True, False, False]))  # twice in a row
    env.step(np.zeros((3, 2), dtype=np.int8))
    assert env.obs[:, 0, 0].tolist() == [1, 3, 2]


def test_an_ended_episode_must_be_reset():
    env = DiceEnv(2, seed=0, length=2)
    with pytest.raises(ValueError, match=r"\[0, 1\] have no running episode"):
        env.step(np.zeros((2, 2), dtype=int))
    env.reset()
    only_second = np.array([False, True])
    env.step(np.zeros((2, 2), dtype=int), only_second)
    env.step(np.zeros((2, 2), dtype=int))
    assert env.terminated.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"\[1\] have no running episode"):
        env.step(np.zeros((2, 2), dtype=int))
    assert env.t.tolist() == [1, 2], "the refused call must not have stepped anything"
    env.reset(only_second)
    assert not env.terminated.any()
    env.step(np.zeros((2, 2), dtype=int))
    assert env.terminated.tolist() == [True, False]


@pytest.mark.parametrize("length", [4, 9])
def test_terminated_or_truncated(length):
    env = DiceEnv(1, seed=0, length=length)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((1, 2), dtype=int))
    assert (env.terminated[0], env.truncated[0]) == (length == 4, length == 9)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[0, 0], [0, 2]], r"environment 1, agent 1: action 2 is not available, only \[0, 1\]"),
        ([[0, 0], [3, 0]], "environment 1, agent 0: action 3 is not available"),
        ([[-1, 0], [0, 0]], "environment 0, agent 0: action -1 is not available"),
        ([[0, -1], [0, 0]], "environment 0, agent 1: action -1 is not available"),
        ([0, 0], "actions are int64"),
        ([[0.0, 0.0], [0.0, 0.0]], "actions are float64"),
        ([[0, 0, 0], [0, 0, 0]], "must be integers"),
    ],
)
def test_bad_actions(actions, message):
    env = DiceEnv(2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.array(actions))
    assert env.t.tolist() == [0, 0]


@pytest.mark.parametrize("mask", [[True], [1, 0], [[True, True]]])
def test_bad_masks(mask):
    env = DiceEnv(2, seed=0)
    with pytest.raises(ValueError, match="mask"):
        env.reset(np.array(mask))


# continuous actions


def test_continuous_actions_are_told_and_laid_out():
    env = DriftEnv(3, seed=0)
    info = env.get_env_info()
    assert (info["continuous_actions"], info["n_actions"], info["action_sizes"]) == (
        True,
        2,
        (2, 1),
    )
    assert env.spec.action_layout(3) == ((3, 2, 2), np.float32)
    assert DiceEnv(3, 0).spec.action_layout(4) == ((4, 2), np.int64)
    assert EnvSpec(1, 1, 1, 1, 1) != EnvSpec(1, 1, 1, 1, 1, continuous_actions=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous_actions_of_a_native_environment(dtype):
    env = DriftEnv(2, seed=0)
    env.reset()
    actions = np.array([[[0.5, -1], [0.25, 1]], [[1, 1], [-0.125, 0]]], dtype=dtype)
    env.step(actions)
    assert env.obs.tolist() == [[[0.5, -1], [0.25, 0]], [[1, 1], [-0.125, 0]]]
    garbage = np.full((2, 2, 2), np.nan, dtype=dtype)
    garbage[1] = 0.5
    env.step(garbage, np.array([False, True]))
    assert np.isnan(garbage[0]).all(), "the caller's array is not ours to change"
    assert env.obs.tolist() == [[[0.5, -1], [0.25, 0]], [[1.5, 1.5], [0.375, 0]]]
    assert env.reward.tolist() == [-0.25, 3.375]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            (1, 0, 1),
            1.0001,
            r"environment 1, agent 0: action \[0.0, 1.000.*\] is not all from -1 to 1",
        ),
        ((0, 1, 0), -1.5, r"environment 0, agent 1: action \[-1.5, 0.0\]"),
        ((0, 1, 1), 2, r"environment 0, agent 1: action \[0.0, 2.0\]"),  # padding is no excuse
        ((0, 0, 0), np.nan, r"environment 0, agent 0: action \[nan, 0.0\]"),
        ((1, 1, 0), np.inf, r"environment 1, agent 1: action \[inf, 0.0\]"),
    ],
)
def test_continuous_actions_out_of_range(place, value, message):
    env = DriftEnv(2, seed=0)
    env.reset()
    actions = np.zeros((2, 2, 2), dtype=np.float32)
    actions[place] = value
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.t.tolist() == [0, 0]
    env.step(actions, np.arange(2) != place[0])  # the other environment's action is fine
    assert env.t.sum() == 1


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (
            np.zeros((2, 2, 2), dtype=int),
            r"actions are int64 \[2, 2, 2\], must be floats \[2, 2, 2\]",
        ),
        (np.zeros((2, 2)), r"actions are float64 \[2, 2\]"),
        (np.zeros((2, 2, 3)), r"actions are float64 \[2, 2, 3\]"),
    ],
)
def test_continuous_actions_of_wrong_form(actions, message):
    env = DriftEnv(2, seed=0)
    with pytest.raises(ValueError, match=r"\[0, 1\] have no running episode"):
        env.step(np.zeros((2, 2, 2)))
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.t.tolist() == [0, 0]


def test_streams_depend_on_seed_and_index_only():
    def rolls(n_envs, seed):
        env = DiceEnv(n_envs, seed)
        out = []
        for _ in range(12):
            env.reset()
            out.append(env.state[:, 0].copy())
        return np.array(out)

    assert (rolls(5, 3)[:, :2] == rolls(2, 3)).all()
    assert (rolls(2, 3) != rolls(2, 4)).any()
    assert (rolls(2, 3)[:, 0] != rolls(2, 3)[:, 1]).any()


def test_rng_state_continues_where_it_was():
    def rolls(env):
        out = []
        for _ in range(9):
            env.reset()
            out.append(env.state[:, 0].tolist())
        return out

    env = DiceEnv(3, seed=1)
    first = rolls(env)
    state = env.get_rng_state()
    following = rolls(env)
    other = DiceEnv(3, seed=2)
    other.set_rng_state(state)
    assert rolls(other) == following != first
    env.seed(1)
    assert rolls(env) == first
    with pytest.raises(ValueError, match="3 environments"):
        DiceEnv(2, seed=1).set_rng_state(state)


# SingleEnv


def test_single_env_is_pymarls_interface():
    env = SingleEnv(DiceEnv(1, seed=5, length=9))
    reference = DiceEnv(1, seed=5, length=9)
    env.reset()
    reference.reset()
    for t in range(1, 5):
        reward, terminated, info = env.step([2, 1])
        reference.step(np.array([[2, 1]]))
        roll = reference.state[0, 0]
        assert reward == 3.0
        assert terminated == (t == 4)
        expected = {"roll": roll}
        if roll % 2:
            expected["odd_roll"] = roll
        if t == 4:
            expected["episode_limit"] = True
        assert info == expected
        assert [x.tolist() for x in env.get_obs()] == [[t, roll]] * 2
        assert env.get_obs_agent(1).tolist() == [t, roll]
        assert env.get_state().tolist() == [roll]
        assert [list(x) for x in env.get_avail_actions()] == [[1, 1, 1], [1, 1, 0]]
        assert list(env.get_avail_agent_actions(1)) == [1, 1, 0]
    assert (env.get_obs_size(), env.get_state_size(), env.get_total_actions()) == (2, 1, 3)
    assert env.get_env_info() == reference.get_env_info()
    with pytest.raises(NotImplementedError):
        env.render()

    state = env.get_rng_state()
    env.reset()
    after = env.get_state()
    env.set_rng_state(state)
    env.reset()
    assert env.get_state() == after


def test_single_env_hands_out_copies_and_individual_rewards():
    env = SingleEnv(DiceEnv(1, seed=5, individual_rewards=True))
    obs, state = env.reset()
    before = (obs[0].copy(), state.copy())
    reward, _, _ = env.step([2, 1])
    env.step([0, 0])
    assert reward.tolist() == [2, 1]
    assert (obs[0] == before[0]).all()
    assert (state == before[1]).all()


def test_single_env_with_continuous_actions():
    env = SingleEnv(DriftEnv(1, seed=5))
    env.reset()
    reward, _, _ = env.step([[0.5, -1.0], [0.25, 0.0]])
    assert reward == -0.25
    assert [x.tolist() for x in env.get_obs()] == [[0.5, -1], [0.25, 0]]
    assert env.get_env_info()["continuous_actions"] is True
    with pytest.raises(ValueError, match=r"actions are float64 \[1, 4\]"):
        env.step([0.5, -1.0, 0.25, 0.0])


def test_single_env_wants_one_environment():
    with pytest.raises(ValueError, match="n_envs=1"):
        SingleEnv(DiceEnv(2, seed=0))


# both backends


def choose(b, count, avail):
    """The `count`-th action of every agent in environment b: any available one, but always the
    same.
    """
    return [
        [u for u in range(len(row)) if row[u]][(3 * b + count + 2 * a) % int(sum(row))]
        for a, row in enumerate(avail)
    ]


def padded(rows, width):
    return [[float(x) for x in row] + [0.0] * (width - len(row)) for row in rows]


def plain_loop(factory, env_args, n_envs, n_steps, seed=11, role="train_env"):
    """What every environment gives in `n_steps` steps of its own, new episodes following at
    once.
    """

    def observed(env):
        return padded(env.get_obs(), 4), list(env.get_state()), padded(env.get_avail_actions(), 4)

    records = []
    for b in range(n_envs):
        env = factory(**env_args, seed=derive_seed(seed, role, b))
        record = []
        limit = env.episode_limit
        t = None
        for count in range(n_steps):
            if t is None:
                env.reset()
                t = 0
                record.append(("reset", *observed(env)))
            reward, done, info = env.step(choose(b, count, env.get_avail_actions()))
            t += 1
            truncated = (done and "episode_limit" in info) or (not done and t == limit)
            figures = {k: float(v) for k, v in info.items() if k != "name"}
            record.append((reward, done and not truncated, truncated, figures, *observed(env)))
            if done or truncated:
                t = None
        records.append(record)
    return records


def vector_loop(env, n_steps):
    """The same through a VectorEnv. Environment b pauses in every (b + 5)-th round, to make them
    run out of step.
    """

    def observed(b):
        return env.obs[b].tolist(), env.state[b].tolist(), env.avail_actions[b].tolist()

    records = [[] for _ in range(env.n_envs)]
    counts = np.zeros(env.n_envs, dtype=int)
    fresh = np.ones(env.n_envs, dtype=bool)
    turn = 0
    while (counts < n_steps).any():
        turn += 1
        mask = (counts < n_steps) & (turn % (np.arange(env.n_envs) + 5) != 0)
        starting = mask & fresh
        if starting.any():
            env.reset(starting)
            for b in np.flatnonzero(starting):
                records[b].append(("reset", *observed(b)))
                assert env.reward[b].sum() == 0
                assert not env.terminated[b]
                assert not env.truncated[b]
        if not mask.any():
            continue
        actions = np.zeros((env.n_envs, env.n_agents), dtype=np.int64)
        for b in np.flatnonzero(mask):
            actions[b] = choose(b, counts[b], env.avail_actions[b])
        env.step(actions, mask)
        for b in np.flatnonzero(mask):
            figures = {k: v[b].item() for k, v in env.info.items() if not np.isnan(v[b])}
            records[b].append(
                (
                    env.reward[b].tolist(),
                    bool(env.terminated[b]),
                    bool(env.truncated[b]),
                    figures,
                    *observed(b),
                )
            )
        counts += mask
        fresh = env.terminated | env.truncated | (fresh & ~mask)
    return records


def assert_same(records, reference):
    for b, (record, expected) in enumerate(zip(records, reference, strict=True)):
        assert len(record) == len(expected)
        for t, (x, y) in enumerate(zip(record, expected, strict=True)):
            where = f"environment {b}, entry {t}"
            if x[0] == "reset":
                assert y[0] == "reset", where
                got, wanted = x[1:], y[1:]
            else:
                assert x[1:4] == y[1:4], where
                got, wanted = (x[0], *x[4:]), (y[0], *y[4:])
            for one, two in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(np.float32(one), np.float32(two), err_msg=where)


@pytest.mark.parametrize(
    ("factory", "env_args"),
    [
        (CountingEnv, {"chance": 0.3, "limit": 4, "info_late": True}),
        (CountingEnv, {"chance": 0.2, "limit": 4, "tell_limit": False}),
        (CountingEnv, {"length": 3, "limit": 3}),
        (UnevenEnv, {"chance": 0.3, "limit": 6}),
    ],
)
def test_backends_equal_a_plain_loop(build, factory, env_args):
    env = build(factory, **env_args)
    records = vector_loop(env, 25)
    assert_same(records, plain_loop(factory, env_args, 3, 25))
    ends = [
        entry[1:3]
        for record in records
        for entry in record
        if entry[0] != "reset" and (entry[1] or entry[2])
    ]
    assert len(ends) > 5
    if env_args.get("chance"):
        assert {(True, False), (False, True)} == set(ends), "both kinds of end must have been seen"
        lengths = {
            tuple(i for i, entry in enumerate(record) if entry[0] == "reset") for record in records
        }
        assert len(lengths) == 3, "uneven lengths must have been seen"


def test_streams_do_not_depend_on_the_number_of_environments(build):
    few = vector_loop(build(CountingEnv, n_envs=1, chance=0.2), 12)
    many = vector_loop(build(CountingEnv, n_envs=3, chance=0.2), 12)
    assert few[0] == many[0]
    assert many[0] != many[1]
    assert vector_loop(build(CountingEnv, n_envs=1, chance=0.2, role="test_env"), 12) != few


def test_individual_sizes_and_rewards(build):
    env = build(UnevenEnv, n_envs=2)
    assert env.individual_rewards
    assert env.reward.shape == (2, 3)
    assert (env.obs_sizes, env.action_sizes) == ((2, 4, 3), (4, 2, 3))
    env.reset()
    assert env.avail_actions[1].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    env.step(np.array([[3, 1, 2], [0, 1, 0]]))
    assert env.reward.tolist() == [[3, 1, 2], [0, 1, 0]]
    assert env.obs[0, 0].tolist() == [2, 1, 0, 0]
    assert env.obs[0, 2, :3].tolist() == [2, 3, 3]
    assert env.obs[0, 2, 3] == 0
    with pytest.raises(ValueError, match="environment 1, agent 1: action 2"):
        env.step(np.array([[3, 1, 2], [0, 2, 0]]))


def test_continuous_actions_reach_every_environment_bit_by_bit(build):
    env = build(EchoEnv)
    assert env.continuous_actions
    assert env.get_env_info()["continuous_actions"] is True
    assert (env.n_actions, env.action_sizes) == (3, (1, 3))
    rng = np.random.default_rng(0)
    env.reset()
    assert env.avail_actions.tolist() == [[[1, 0, 0], [1, 1, 1]]] * 3
    last = np.zeros((3, 2, 3), dtype=np.float32)
    for t, mask in enumerate([[True] * 3, [False, True, True], [True, False, True]], start=1):
        actions = rng.uniform(-1, 1, (3, 2, 3)).astype(np.float32)
        env.step(actions, np.array(mask))
        last[mask] = actions[mask]
        assert np.array_equal(env.state, last.reshape(3, 6))
        assert not env.obs[:, 0, 2:].any()
        assert np.array_equal(env.obs[:, 0, 1], last[:, 0, 0])
        assert np.array_equal(env.obs[:, 1, 1:], last[:, 1])
        assert env.reward[2].tolist() == [last[2, 0, 0], last[2, 1].sum()]
        assert env.obs[2, :, 0].tolist() == [t, t]
        assert np.nanmin(env.info["well_formed"]) == 1
    with pytest.raises(ValueError, match=r"environment 2, agent 1: action \[0.0, 0.0, nan\]"):
        env.step(np.where(np.arange(18).reshape(3, 2, 3) == 17, np.nan, 0.0))
    env.step(last)
    assert env.truncated.tolist() == [False, False, True]  # after 4 steps


def test_environments_that_pad_by_themselves(build):
    records = vector_loop(build(PaddedUnevenEnv), 8)
    assert_same(records, plain_loop(UnevenEnv, {}, 3, 8))


def test_info_is_nan_where_nothing_was_said(build):
    env = build(CountingEnv, n_envs=2, info_late=True)
    env.reset()
    zeros = np.zeros((2, 3), dtype=int)
    env.step(zeros)
    assert set(env.info) == {"won", "draw"}
    env.step(zeros, np.array([True, False]))
    assert set(env.info) == {"won", "draw", "late"}
    assert env.info["late"][0] == 2
    assert np.isnan(env.info["late"][1])
    env.step(zeros, np.array([False, True]))
    assert env.info["late"].tolist() == [2, 2]
    env.reset()
    env.step(zeros)
    assert np.isnan(env.info["late"]).all()
    assert all(values.shape == (2,) for values in env.info.values())


def test_extra_entries_of_env_info_come_through(build):
    info = build(CountingEnv, n_envs=1).get_env_info()
    assert info["unit_dim"] == 7
    assert info["obs_shape"] == 4


def test_seed_restarts_the_streams(build):
    for factory in (
        CountingEnv,
        ReseedableEnv,
    ):  # the first has PyMARL's seed(), without an argument
        env = build(factory, chance=0.2)
        first = vector_loop(env, 10)
        assert vector_loop(env, 10) != first
        env.seed(11)
        assert vector_loop(env, 10) == first
        env.seed(12)
        assert_same(vector_loop(env, 10), plain_loop(factory, {"chance": 0.2}, 3, 10, seed=12))


def test_rng_state_across_backends(build):
    env = build(ReseedableEnv, chance=0.2)
    vector_loop(env, 7)
    env.reset()
    state = env.get_rng_state()
    following = vector_loop(env, 10)
    with SerialVectorEnv(ReseedableEnv, {"chance": 0.2}, 3, 99, "train_env") as other:
        other.set_rng_state(state)
        assert vector_loop(other, 10) == following
    env.set_rng_state(state)
    assert vector_loop(env, 10) == following
    with pytest.raises(ValueError, match="3 environments"):
        build(ReseedableEnv, n_envs=2).set_rng_state(state)
    assert build(CountingEnv).get_rng_state() is None


def test_t_env_reaches_the_next_episode(build):
    env = build(ShiftingEnv)
    zeros = np.zeros((3, 3), dtype=int)
    env.reset()
    env.set_t_env(1000)
    env.step(zeros)
    assert env.reward.tolist() == [1, 1, 1]
    env.reset(np.array([False, True, False]))
    env.step(zeros)
    assert env.reward.tolist() == [2, 1001, 2]
    env.set_t_env(2000)
    env.reset()
    env.step(zeros)
    assert env.reward.tolist() == [2001, 2001, 2001]


def test_queries_pass_through(build):
    env = build(CountingEnv, n_envs=2)
    env.reset()
    env.reset(np.array([False, True]))
    env.step(np.zeros((2, 3), dtype=int), np.array([False, True]))
    assert env.get_stats() == {"resets": [1, 2]}
    assert env.render(1).tolist() == np.full((2, 3, 3), 1).tolist()
    assert env.render().dtype == np.uint8
    with pytest.raises(NotImplementedError):
        env.save_replay()
    env.step(np.zeros((2, 3), dtype=int))  # and it goes on
    assert env.env_restarts == 0


def test_env_error_drops_the_episode_and_replaces_the_environment(build, tmp_path):
    flag = tmp_path / "flag"
    env = build(
        TroubleEnv, flag=str(flag), kind="env_error", only_seed=derive_seed(11, "train_env", 1)
    )
    env.reset()
    zeros = np.zeros((3, 3), dtype=int)
    env.step(zeros)
    flag.touch()
    env.step(zeros)
    assert env.failed.tolist() == [False, True, False]
    assert not env.terminated.any()
    assert not env.truncated.any()
    assert env.env_restarts == 1
    assert np.isnan(env.info["draw"]).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"\[1\] have no running episode"):
        env.step(zeros)
    env.step(zeros, ~env.failed)
    assert env.obs[[0, 2], 0, 0].tolist() == [3, 3]
    env.reset(env.failed.copy())
    assert not env.failed.any()
    replaced = np.random.default_rng(derive_seed(derive_seed(11, "train_env", 1), "restart", 1))
    assert env.obs[1, 0].tolist() == [0, 0, 0, np.float32(replaced.random())]
    assert env.obs[[0, 2], 0, 0].tolist() == [3, 3]
    env.step(zeros)
    assert env.info["draw"][1] == replaced.random()


def test_env_error_too_often_in_a_row(build, tmp_path, caplog):
    flag = tmp_path / "flag"
    flag.touch()
    env = build(
        TroubleEnv,
        n_envs=2,
        max_env_restarts=2,
        flag=str(flag),
        kind="env_error",
        keep=True,
        limit=3,
    )

    def episode():
        env.reset()
        for _ in range(3):
            running = ~(env.failed | env.truncated)
            if running.any():
                env.step(np.zeros((2, 3), dtype=int), running)

    episode()
    episode()
    assert env.failed.all()
    flag.unlink()
    episode()  # a whole episode: the count begins anew
    assert env.truncated.all()
    flag.touch()
    episode()
    episode()
    assert env.env_restarts == 8
    with pytest.raises(
        EnvFailure, match=r"environment 0 \(train_env\) broke 3 times in a row .*reported env_error"
    ):
        episode()
    assert sum("is replaced" in record.message for record in caplog.records) == 8


@pytest.mark.parametrize("n_envs", [0, -1])
def test_no_environments(build, n_envs):
    with pytest.raises(ValueError, match="n_envs"):
        build(CountingEnv, n_envs=n_envs)


def test_serial_exceptions_propagate_as_they_are(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    env = SerialVectorEnv(TroubleEnv, {"flag": str(flag), "kind": "raise"}, 2, 0, "train_env")
    env.reset()
    env.step(np.zeros((2, 3), dtype=int))
    with pytest.raises(ValueError, match="the dice fell off the table"):
        env.step(np.zeros((2, 3), dtype=int))


def test_rewards_that_were_not_announced():
    env = SerialVectorEnv(BadRewardEnv, {}, 1, 0, "train_env")
    env.reset()
    with pytest.raises(ValueError, match=r"3 rewards, expected 1.*individual_rewards"):
        env.step(np.zeros((1, 3), dtype=int))


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("get_obs", [np.zeros(4)] * 2, r"get_obs\(\) gave 2 entries for 3 agents"),
        ("get_obs", [np.zeros(5)] * 3, r"get_obs\(\) gave 15 entries, get_env_info\(\) says 12"),
        ("get_state", np.zeros(2), r"get_state\(\) gave 2 entries"),
        ("get_avail_actions", [[1] * 3] * 3, r"get_avail_actions\(\) gave 9 entries"),
    ],
)
def test_wrong_shapes_are_told(method, value, message):
    class Wrong(CountingEnv):
        pass

    setattr(Wrong, method, lambda self: value)
    with pytest.raises(ValueError, match=message):
        SerialVectorEnv(Wrong, {}, 1, 0, "train_env").reset()


def test_env_info_that_lacks_something():
    class Short(CountingEnv):
        def get_env_info(self):
            return {"n_agents": 3}

    with pytest.raises(ValueError, match="lacks 'n_actions'"):
        SerialVectorEnv(Short, {}, 1, 0, "train_env")


# registries and make_vector_env


@pytest.fixture
def _registered():
    envs.register("counting")(CountingEnv)
    envs.register_vector("dice")(DiceEnv)
    envs.register_vector("drift")(DriftEnv)
    yield
    for registry in (envs.REGISTRY, envs.VECTOR_REGISTRY):
        registry.pop("counting", None)
        registry.pop("dice", None)
        registry.pop("drift", None)


def test_built_in_names():
    assert {"matrix_game", "predator_prey", "switching_wind", "gymma"} <= set(envs.REGISTRY)
    assert set(envs.VECTOR_REGISTRY) <= set(envs.REGISTRY)
    assert "gymma" not in envs.VECTOR_REGISTRY


@pytest.mark.usefixtures("_registered")
def test_registering():
    assert envs.REGISTRY["counting"] is CountingEnv
    single = envs.REGISTRY["dice"](seed=3, length=2)
    assert isinstance(single, SingleEnv)
    assert single.vector_env.length == 2
    with pytest.raises(ValueError, match="already registered"):
        envs.register_vector("dice")(VectorEnv)
    with pytest.raises(UserError, match="unknown environment 'dise'; did you mean 'dice'"):
        envs.make_vector_env("dise", {}, 1, 0, "native", "train_env")


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("backend", "kind"),
    [("native", DiceEnv), ("serial", SerialVectorEnv), ("subproc", SubprocVectorEnv)],
)
def test_make_vector_env_picks_the_backend(backend, kind):
    with envs.make_vector_env(
        "dice", {"length": 2, "seed": 123}, 2, 7, backend, "train_env"
    ) as env:
        assert type(env) is kind
        env.reset()
        state = env.state[:, 0].tolist()
        for _ in range(2):
            env.step(np.zeros((2, 2), dtype=int))
        assert env.terminated.all()
    if backend == "native":
        seeds = [derive_seed(derive_seed(7, "train_env"), "env", b) for b in range(2)]
    else:
        seeds = [derive_seed(derive_seed(7, "train_env", b), "env", 0) for b in range(2)]
    assert state == [np.random.default_rng(seed).integers(1, 7) for seed in seeds]


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("backend", ["native", "serial", "subproc"])
def test_make_vector_env_with_continuous_actions(backend):
    with envs.make_vector_env("drift", {}, 2, 7, backend, "train_env") as env:
        env.reset()
        env.step(np.array([[[1, 0.5], [-1, 0]], [[0.25, 0], [0, 0]]], dtype=np.float32))
        assert env.obs.tolist() == [[[1, 0.5], [-1, 0]], [[0.25, 0], [0, 0]]]
        assert env.get_env_info()["continuous_actions"] is True


@pytest.mark.usefixtures("_registered")
def test_native_falls_back_to_serial_with_one_line(caplog):
    with (
        caplog.at_level(logging.INFO),
        envs.make_vector_env("counting", {}, 2, 7, "native", "train_env") as env,
    ):
        assert type(env) is SerialVectorEnv
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "'counting'" in caplog.text


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "nativ"}, "backend 'nativ'; did you mean 'native'"),
        ({"n_envs": 0}, "number of environments is 0"),
        ({"n_envs": -3}, "number of environments is -3"),
        ({"env_timeout": 0}, "env_timeout is 0"),
        ({"max_env_restarts": -1}, "max_env_restarts is -1"),
        ({"env_args": {"lenght": 3}}, "no argument env_args.lenght; did you mean 'length'"),
        (
            {"name": "dice", "env_args": {"lenth": 3}},
            "no argument env_args.lenth; did you mean 'length'",
        ),
    ],
)
def test_bad_requests(change, message):
    request = {
        "name": "counting",
        "env_args": {},
        "n_envs": 2,
        "seed": 1,
        "backend": "serial",
        "role": "train_env",
    }
    with pytest.raises(ConfigError, match=message):
        envs.make_vector_env(**{**request, **change})


def test_a_missing_argument():
    class Needy(CountingEnv):
        def __init__(self, map_name, seed=None):
            super().__init__(seed)

    envs.register("needy")(Needy)
    try:
        with pytest.raises(ConfigError, match=r"'needy'.*'map_name'"):
            envs.make_vector_env("needy", {}, 1, 0, "serial", "train_env")
    finally:
        del envs.REGISTRY["needy"]


def test_worker_processes_for_a_batched_environment(caplog, monkeypatch):
    """They are advised against, and start after this process has made one step (and compiled what
    that takes).
    """
    made = []

    class Noted(PredatorPrey):
        def __init__(self, n_envs, **kwargs):
            super().__init__(n_envs, **kwargs)
            made.append(self)

    monkeypatch.setitem(envs.VECTOR_REGISTRY, "predator_prey", Noted)
    args = {"n_predators": 3, "episode_limit": 1}
    with (
        caplog.at_level(logging.INFO),
        envs.make_vector_env("predator_prey", args, 1, 7, "subproc", "train_env"),
    ):
        assert "'predator_prey' is natively batched: runner=vector" in caplog.text
    (env,) = made
    assert env.n_agents == 3
    assert env.truncated.all()


def test_environments_import_no_torch():
    code = (
        "import sys, envs, envs.subproc, envs.serial, envs.worker; assert 'torch' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SRC)})

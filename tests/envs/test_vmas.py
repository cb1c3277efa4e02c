"""VMAS behind the contract. What needs vmas is skipped where it is not installed
(requirements-vmas.txt).
"""

import importlib.util

import numpy as np
import pytest
import test_env_contract as contract
import torch

from envs import REGISTRY, make_vector_env, packages
from envs import vmas as ours
from utils.errors import ConfigError, MissingPackage

REASON = "vmas is not installed: pip install -r requirements-vmas.txt"
needs_vmas = pytest.mark.skipif(importlib.util.find_spec("vmas") is None, reason=REASON)
CASES = [
    contract.Case("vmas", {"map_name": "balance", "time_limit": 6}, label="balance"),
    contract.Case(
        "vmas",
        {"map_name": "simple_spread", "time_limit": 4, "continuous_actions": False},
        "truncated",
        label="discrete",
    ),
]


def make(n_envs, seed, backend="native", **env_args):
    return make_vector_env("vmas", env_args, n_envs, seed, backend, "train_env")


def play(env, steps, seed=0):
    """Random actions from the first reset on: what the agents see and get."""
    player = contract.Player(env, seed)
    everyone = np.ones(env.n_envs, dtype=bool)
    env.reset()
    shown = [env.obs.copy()]
    for _ in range(steps):
        player.step(everyone)
        shown += [env.obs.copy(), env.reward.copy()]
    return shown


# without vmas


def test_yaml_has_every_argument_with_its_default():
    contract.test_yaml_has_every_argument_with_its_default("vmas")


def test_without_vmas(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingPackage,
        match=r"^vmas needs the package vmas: pip install -r requirements-vmas\.txt$",
    ):
        REGISTRY["vmas"](seed=1)


# with vmas


@needs_vmas
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_contract(case, check):
    check(lambda n_envs, seed: make(n_envs, seed, **case.env_args), case)


@needs_vmas
@pytest.mark.parametrize("check", [contract.check_arrays, contract.check_seeding])
def test_contract_one_by_one(check):
    case = CASES[1]
    check(lambda n_envs, seed: make(n_envs, seed, "serial", **case.env_args), case)


@needs_vmas
def test_pymarl_interface():
    for case in CASES:
        contract.test_pymarl_interface(case)


@needs_vmas
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("scenario", ["balance", "simple_reference", "wheel"])
def test_steps_are_those_of_vmas(scenario, continuous):
    """Step by step, a batch that starts from the same seeds and gets the same actions; in
    simple_reference agents also speak, in numbers from 0 to 1.
    """
    import vmas

    args = {"continuous_actions": continuous, "seed": 0}
    theirs = vmas.make_env(scenario, num_envs=3, terminated_truncated=True, **args)
    with make(3, 4, map_name=scenario, continuous_actions=continuous, time_limit=20) as env:
        env.reset()
        for b in range(3):
            theirs.seed(int(env._keys[b]))
            theirs.reset_at(b)
        player = contract.Player(env)
        everyone = np.ones(3, dtype=bool)
        for _ in range(12):
            actions = player.actions(everyone)
            env.step(actions)
            given = []
            for agent, space in enumerate(theirs.action_space):
                if not continuous:
                    given.append(torch.tensor(actions[:, agent, None]))
                    continue
                size, low, high = space.shape[0], space.low, space.high
                share = (actions[:, agent, :size].astype(np.float64) + 1) / 2
                given.append(torch.tensor(low + share * (high - low), dtype=torch.float32))
            obs, rewards, terminated, _, _ = theirs.step(given)
            for agent, (one, reward) in enumerate(zip(obs, rewards, strict=True)):
                size = env.obs_sizes[agent]
                np.testing.assert_allclose(env.obs[:, agent, :size], one, rtol=1e-3, atol=1e-4)
                reward = reward.reshape(-1)  # wheel's has an axis more
                np.testing.assert_allclose(env.reward[:, agent], reward, rtol=1e-3, atol=1e-4)
            assert env.terminated.tolist() == terminated.tolist()
            if env.terminated.any():
                break


@needs_vmas
def test_other_environments_are_frozen_whole():
    """Also what a scenario remembers beside its bodies: balance's reward is a difference to the
    last step's distance.
    """
    args = {"map_name": "balance", "time_limit": 30}
    with make(2, 1, **args) as env:
        undisturbed = play(env, 5)
    with make(2, 1, **args) as env:
        env.reset()
        player = contract.Player(env)
        first, second = np.array([True, False]), np.array([False, True])
        for t in range(5):
            env.step(np.ones((2, 3, 2), dtype=np.float32), first)
            player.step(second)
            assert np.array_equal(env.reward[1], undisturbed[2 + 2 * t][1])
        slots = ours.find_slots(env._env, 2)
    held = {key for _, key in slots}
    assert {"_pos", "_vel", "global_shaping", "steps"} <= held


@needs_vmas
def test_noise_in_steps_follows_from_seeds_and_steps():
    """Agents whose actions are noisy: the same random state brings the same noise, whatever
    PyTorch's own generator does, which stays as it was.
    """
    args = {"map_name": "simple_spread", "time_limit": 10}
    with make(2, 3, **args) as env:
        quiet = play(env, 3)
        for agent in env._env.agents:
            agent.action._u_noise = 0.5
        env.seed(3)
        assert not contract.equal(quiet, play(env, 3))
        state = env.get_rng_state()
        torch.manual_seed(1)
        first = play(env, 10)
        env.set_rng_state(state)
        torch.manual_seed(2)
        assert contract.equal(first, play(env, 10))
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        play(env, 2)
        assert torch.equal(torch.rand(1), expected), "PyTorch's own generator was moved"


@needs_vmas
def test_sizes_differ_between_agents():
    with make(2, 1, map_name="simple_speaker_listener") as env:
        assert len(set(env.obs_sizes)) == 2
        assert env.state_size == sum(env.obs_sizes)
        env.reset()
        speaker, listener = env.obs_sizes
        assert np.array_equal(env.state[:, :speaker], env.obs[:, 0, :speaker])
        assert np.array_equal(env.state[:, speaker:], env.obs[:, 1, :listener])


@needs_vmas
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"map_name": "balanc"}, r"unknown scenario 'balanc'; did you mean 'balance'"),
        ({"kwargs": {"n_agent": 3}}, r"balance refuses env_args\.kwargs .*n_agent.* not used"),
        ({"device": "cuda:77"}, r"PyTorch cannot compute on env_args\.device 'cuda:77'"),
        ({"time_limit": 0}, r"env_args\.time_limit"),
    ],
)
def test_mistakes(args, said):
    with pytest.raises(ConfigError, match=said):
        make(1, 1, **args)

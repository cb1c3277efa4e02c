"""MaMuJoCo as `--env-config` gives it. What needs gymnasium-robotics is skipped where it is not
installed (requirements-mamujoco.txt).
"""

import importlib.util
import inspect

import numpy as np
import pytest
import test_env_contract as contract

from envs import gymma, make_vector_env
from utils.config import build_config
from utils.errors import ConfigError, MissingPackage

REASON = "gymnasium-robotics is not installed: pip install -r requirements-mamujoco.txt"
installed = importlib.util.find_spec("gymnasium_robotics") is not None
needs_mujoco = pytest.mark.skipif(not installed, reason=REASON)
# as the package says: agents, entries of the longest action and observation, of the state
SIZES = {
    ("HalfCheetah", "2x3"): (2, 3, 12, 17),
    ("HalfCheetah", "6x1"): (6, 1, 9, 17),
    ("Ant", "4x2"): (4, 2, 42, 105),
}


def env_args(*updates):
    return build_config("ma_ppo", "mamujoco", updates)["env_args"]


def make(n_envs, seed, *updates, backend="serial"):
    return make_vector_env("gymma", env_args(*updates), n_envs, seed, backend, "train_env")


def test_without_gymnasium_robotics(monkeypatch):
    monkeypatch.setattr(gymma.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-mamujoco\.txt$"):
        make(1, 1)


def test_the_team_gets_the_robots_reward_once():
    assert build_config("qmix", "mamujoco")["reward_scalarisation"] == "mean"


@needs_mujoco
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    case = contract.Case("gymma", ends="truncated", renders=False)
    check(lambda n, seed: make(n, seed, "env_args.time_limit=5"), case)


@needs_mujoco
def test_contract_in_worker_processes():
    case = contract.Case("gymma", ends="truncated")
    contract.check_seeding(
        lambda n, seed: make(n, seed, "env_args.time_limit=4", backend="subproc"), case
    )


@needs_mujoco
@pytest.mark.parametrize(("scenario", "parts"), SIZES)
def test_steps_are_those_of_the_package(scenario, parts):
    from gymnasium_robotics.envs.multiagent_mujoco import mamujoco_v1

    updates = f"env_args.kwargs.scenario={scenario}", f"env_args.kwargs.agent_conf={parts}"
    theirs = mamujoco_v1.parallel_env(scenario=scenario, agent_conf=parts, agent_obsk=1)
    env = gymma.GymmaEnv(**{**env_args(*updates), "seed": 3})
    info = env.get_env_info()
    sizes = tuple(info[k] for k in ("n_agents", "n_actions", "obs_shape", "state_shape"))
    assert sizes == SIZES[scenario, parts]
    assert info["continuous_actions"]
    env.reset()
    theirs.reset(seed=int(np.random.default_rng(3).integers(2**31)))
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.uniform(-1, 1, sizes[:2]).astype(np.float32)
        given = {
            agent: actions[i, : theirs.action_space(agent).shape[0]]
            * theirs.action_space(agent).high
            for i, agent in enumerate(theirs.possible_agents)
        }
        rewards, over, _ = env.step(actions)
        observed, their_rewards, *_ = theirs.step(given)
        assert rewards == pytest.approx(list(their_rewards.values()), rel=1e-4, abs=1e-5)
        for i, agent in enumerate(theirs.possible_agents):
            size = len(observed[agent])
            assert env.get_obs()[i][:size] == pytest.approx(observed[agent], rel=1e-3, abs=1e-4)
        assert env.get_state() == pytest.approx(theirs.state(), rel=1e-3, abs=1e-4)
        if over:
            break
    env.close()


@needs_mujoco
@pytest.mark.parametrize(
    ("update", "said"),
    [
        ("env_args.kwargs.scenario=HalfCheeta", r"refuses env_args\.kwargs"),
        ("env_args.kwargs.agent_conf=5x3", r"refuses env_args\.kwargs .*5x3"),
        ("env_args.kwargs.agent_obsk=-1", r"env_args\.kwargs\.agent_obsk"),
        ("env_args.kwargs.agent_obs=1", r"agent_obs"),
    ],
)
def test_mistakes(update, said):
    with pytest.raises(ConfigError, match=said):
        make(1, 1, update)


@needs_mujoco
def test_every_keyword_of_the_package_that_a_yaml_can_give_is_in_the_yaml():
    from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv

    own = set(inspect.signature(MultiAgentMujocoEnv).parameters)
    objects = {"agent_factorization", "local_categories", "global_categories", "gym_env", "kwargs"}
    assert set(env_args()["kwargs"]) == own - objects

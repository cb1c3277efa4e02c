"""Overcooked-AI behind the contract. What needs overcooked-ai is skipped where it is not installed
(requirements-overcooked.txt).
"""

import importlib.util

import numpy as np
import pytest
import test_env_contract as contract

from envs import REGISTRY, make_vector_env, packages
from utils.errors import ConfigError, MissingPackage

REASON = "overcooked-ai is not installed: pip install -r requirements-overcooked.txt"
installed = importlib.util.find_spec("overcooked_ai_py") is not None
needs_overcooked = pytest.mark.skipif(not installed, reason=REASON)
CASES = [
    contract.Case("overcooked", {"time_limit": 6}, "truncated", False, label="start"),
    contract.Case(
        "overcooked",
        {"map_name": "coordination_ring", "random_start": True, "time_limit": 5},
        "truncated",
        label="random",
    ),
]
UP, DOWN, RIGHT, LEFT, STAY, INTERACT = range(6)


def make(n_envs, seed, backend="serial", **env_args):
    return make_vector_env("overcooked", env_args, n_envs, seed, backend, "train_env")


# without overcooked-ai


def test_yaml_has_every_argument_with_its_default():
    contract.test_yaml_has_every_argument_with_its_default("overcooked")


def test_without_overcooked(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    said = (
        r"^overcooked needs the package overcooked_ai_py: "
        r"pip install -r requirements-overcooked\.txt$"
    )
    with pytest.raises(MissingPackage, match=said):
        REGISTRY["overcooked"](seed=1)


# with overcooked-ai


@needs_overcooked
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_contract(case, check):
    check(lambda n_envs, seed: make(n_envs, seed, **case.env_args), case)


@needs_overcooked
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_pymarl_interface(case):
    contract.test_pymarl_interface(case)


def deliver(env):
    """Plays cramped_room by hand, from its start to a delivered soup; gives what each step paid.

    Onions are left of (1, 1), the pot is above (2, 1), dishes are below (1, 2), the place to serve
    is below (3, 2).
    """
    assert [cook.position for cook in env._state.players] == [(1, 2), (3, 1)]
    paid = []

    def act(first, second):
        paid.append(env.step([first, second])[0])

    for _ in range(3):
        for action in (LEFT, LEFT, INTERACT, RIGHT, UP, INTERACT):  # an onion into the pot
            act(STAY, action)
    act(STAY, INTERACT)  # the pot begins to cook
    act(DOWN, RIGHT)
    act(INTERACT, STAY)  # a dish
    act(RIGHT, STAY)
    act(UP, STAY)
    for _ in range(20):
        act(STAY, STAY)
    for action in (UP, INTERACT, DOWN, RIGHT, DOWN, INTERACT):  # the soup, and to its place
        act(action, STAY)
    return [pay for pay in paid if pay]


@needs_overcooked
@pytest.mark.parametrize(("shaped", "paid"), [(0.0, [20]), (0.5, [1.5, 1.5, 1.5, 1.5, 2.5, 20])])
def test_a_soup_by_hand(shaped, paid):
    """20 for a soup; shaping pays 3 for each onion in the pot, 3 for a dish while soup cooks, 5 for
    the soup.
    """
    env = REGISTRY["overcooked"](seed=1, time_limit=100, shaped_reward=shaped)
    env.reset()
    assert deliver(env) == paid
    assert env.step([STAY, STAY])[2] == {"sparse_return": 20.0}
    env.reset()
    assert env.step([STAY, STAY])[2] == {"sparse_return": 0.0}


@needs_overcooked
def test_shaping_falls_with_the_training():
    env = REGISTRY["overcooked"](seed=1, time_limit=100, shaped_reward=1.0, shaping_steps=1000)
    paid = []
    for t_env in (0, 250, 1000, 5000):
        env.set_t_env(t_env)
        env.reset()
        paid.append(sum(deliver(env)) - 20)
    assert paid == [17, 12.75, 0, 0]


@needs_overcooked
def test_steps_are_those_of_the_package():
    from overcooked_ai_py.mdp.actions import Action
    from overcooked_ai_py.mdp.overcooked_mdp import OvercookedGridworld

    kitchen = OvercookedGridworld.from_layout_name("cramped_room")
    state = kitchen.get_standard_start_state()
    env = REGISTRY["overcooked"](seed=1, time_limit=300, shaped_reward=1.0)
    env.reset()
    rng = np.random.default_rng(0)
    total, over = 0.0, False
    while not over:
        actions = rng.integers(6, size=2)
        reward, over, _ = env.step(actions)
        joint = [Action.INDEX_TO_ACTION[a] for a in actions]
        state, info = kitchen.get_state_transition(state, joint)
        assert reward == sum(info["sparse_reward_by_agent"] + info["shaped_reward_by_agent"])
        for one, other in zip(
            env.get_obs(), kitchen.lossless_state_encoding(state, horizon=300), strict=True
        ):
            assert np.array_equal(one, other.reshape(-1))
        total += reward
    assert total > 0, "nothing happened that is paid"


@needs_overcooked
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"map_name": "cramped_rom"}, r"unknown layout 'cramped_rom'; did you mean 'cramped_room'"),
        ({"map_name": "cramped_room_single"}, r"is for 1 cooks"),
        ({"shaped_reward": -1}, r"env_args\.shaped_reward"),
    ],
)
def test_mistakes(args, said):
    with pytest.raises(ConfigError, match=said):
        make(1, 1, **args)

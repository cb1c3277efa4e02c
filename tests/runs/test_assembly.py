"""What a run is assembled from, in one place."""

import pytest
import torch
from learner_fixtures import Log, make_args

from assembly import assemble, build_learner, describe_env, new_batch, scheme_of
from controllers import REGISTRY as CONTROLLERS
from learners import REGISTRY as LEARNERS
from learners.q_learner import QLearner
from utils.errors import ConfigError

INFO = {"n_agents": 3, "n_actions": 4, "obs_shape": 5, "state_shape": 7, "episode_limit": 6}


def test_what_an_environment_is_like():
    args = make_args(obs_shape=0, n_agents=0)
    describe_env(args, INFO | {"continuous_actions": True})
    assert {key: vars(args)[key] for key in INFO} == INFO
    assert args.continuous_actions
    describe_env(args, INFO)  # environments written for PyMARL do not say
    assert not args.continuous_actions
    assert args.env_info is INFO


def test_of_what_parts_an_observation_is_made():
    for info, given, wanted in (
        (INFO, [], [5]),
        (INFO | {"obs_parts": [2, 3]}, [], [2, 3]),
        (INFO | {"obs_parts": [2, 3]}, [1, 4], [1, 4]),
    ):
        args = make_args("cama", cama_parts=given)
        describe_env(args, info)
        assert args.cama_parts == wanted


@pytest.mark.parametrize("common_reward", [True, False])
def test_what_is_stored(common_reward):
    batch = new_batch(make_args(common_reward=common_reward), 2, 6)
    assert batch["reward"].shape == (2, 6, 1 if common_reward else 3)
    assert batch["actions_onehot"].shape == (2, 6, 3, 4)
    assert batch["state"].shape == (2, 6, 7)
    assert batch.scheme["avail_actions"]["dtype"] == torch.uint8
    assert batch["truncated"].shape == batch["terminated"].shape == (2, 6, 1)


def test_actions_may_be_numbers():
    batch = new_batch(make_args(continuous_actions=True), 2, 6)
    assert batch["actions"].shape == (2, 6, 3, 4)
    assert batch["actions"].dtype == torch.float32
    assert "actions_onehot" not in batch.scheme


def test_parts_fit_one_another():
    args = make_args("coma", buffer_size=9, seed=2, critic_hidden_dim=4)
    log = Log()
    log.console_logger = None
    sizes = {"obs_sizes": (5,) * 3, "action_sizes": (4,) * 3}
    parts = assemble(args, INFO | sizes, log)
    assert parts.learner.mac is parts.mac
    assert parts.learner.scheme == parts.buffer.scheme
    assert parts.buffer.buffer_size == 9
    assert parts.buffer.max_seq_length == 7
    recorded = parts.mac.recorded
    assert recorded.keys() <= scheme_of(args, parts.mac)[0].keys()
    assert not recorded.keys() & scheme_of(args)[0].keys()


def test_settings_are_checked_before_anything_is_built(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setitem(CONTROLLERS, "basic_mac", never)
    args = make_args("coma", mac="basic_mac", mixer="qmix")
    with pytest.raises(ConfigError, match=r"learner '.*' needs"):
        build_learner(args, Log())


def test_a_learner_that_checks_nothing(monkeypatch):
    class Foreign:
        def __init__(self, mac, scheme, logger, args):
            self.built = (mac, scheme, logger, args)

    monkeypatch.setitem(LEARNERS, "foreign", Foreign)
    args, log = make_args(learner="foreign"), Log()
    mac, learner = build_learner(args, log)
    assert learner.built == (mac, new_batch(args).scheme, log, args)
    assert isinstance(build_learner(make_args(), log)[1], QLearner)

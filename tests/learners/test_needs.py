"""What learners declare: `Needs`, and the ranges of every number in a shipped algorithm's yaml."""

import math
from types import SimpleNamespace

import pytest

from controllers.basic_controller import BasicMAC
from controllers.dac_controller import DACMAC
from controllers.n_controller import NMAC
from learners import REGISTRY as LEARNERS
from learners.needs import Needs
from modules.agents.mlp_agent import MLPAgent
from modules.recurrent import RNNAgent
from utils.config import RANGES, build_config, list_configs
from utils.errors import ConfigError

# Tried in turn until one is out of range; NaN is in no range.
OUTSIDE = (-1, 0, 1.5, math.inf, math.nan)


def settings(**values):
    return SimpleNamespace(learner="some_learner", mac="basic_mac", agent="rnn", **values)


def refusal(check, *args):
    with pytest.raises(ConfigError) as caught:
        check(*args)
    return str(caught.value)


# -- settings --------------------------------------------------------------------------------------


def test_no_needs():
    Needs().check_settings(settings())
    Needs().check_built(object(), settings())


def test_one_value():
    needs = Needs(settings={"replay": "latest"})
    needs.check_settings(settings(replay="latest"))
    said = refusal(needs.check_settings, settings(replay="episodes"))
    assert said == "learner 'some_learner' needs replay=latest, got replay=episodes"


def test_reason():
    needs = Needs(settings={"replay": "latest"}, why={"replay": "it learns on-policy"})
    said = refusal(needs.check_settings, settings(replay="episodes"))
    assert said == (
        "learner 'some_learner' needs replay=latest (it learns on-policy), got replay=episodes"
    )


def test_one_of_several_values():
    needs = Needs(settings={"mixer": ("qmix", "vdn", None)})
    for mixer in ("qmix", "vdn", None):
        needs.check_settings(settings(mixer=mixer))
    said = refusal(needs.check_settings, settings(mixer="dmaq"))
    assert said.endswith("needs mixer=qmix or mixer=vdn or mixer=null, got mixer=dmaq")


def test_nothing_is_needed():
    needs = Needs(settings={"mixer": None})
    needs.check_settings(settings(mixer=None))
    assert refusal(needs.check_settings, settings(mixer="vdn")).endswith(
        "needs mixer=null, got mixer=vdn"
    )
    needs = Needs(settings={"mixer": "vdn"})
    assert refusal(needs.check_settings, settings(mixer=None)).endswith(
        "needs mixer=vdn, got mixer=null"
    )


@pytest.mark.parametrize(
    ("wanted", "value"), [(True, 1), (False, 0), (1, True), (0.0, False), (1.0, True)]
)
def test_a_switch_is_no_number(wanted, value):
    assert wanted == value
    needs = Needs(settings={"key": wanted})
    needs.check_settings(settings(key=wanted))
    refusal(needs.check_settings, settings(key=value))


def test_the_first_that_does_not_hold_is_told():
    needs = Needs(settings={"a": 1, "b": 2, "c": 3})
    assert refusal(needs.check_settings, settings(a=1, b=0, c=0)).endswith("needs b=2, got b=0")


# -- what was built --------------------------------------------------------------------------------


def built(mac_class=BasicMAC, agent_class=RNNAgent):
    """A controller of a class, with an agent network of a class, neither of which was set up."""
    mac = object.__new__(mac_class)
    mac.agent = object.__new__(agent_class)
    return mac


def test_controller():
    needs = Needs(mac=DACMAC)
    needs.check_built(built(DACMAC), settings())
    said = refusal(needs.check_built, built(BasicMAC), settings())
    assert said == "learner 'some_learner' needs mac=dac_mac, got mac=basic_mac"
    Needs(mac=BasicMAC).check_built(built(DACMAC), settings())  # subclasses fit


def test_one_of_several_controllers():
    needs = Needs(mac=(DACMAC, NMAC))
    needs.check_built(built(NMAC), settings())
    said = refusal(needs.check_built, built(BasicMAC), settings())
    assert "needs mac=n_mac or mac=dac_mac, got mac=basic_mac" in said


def test_agent_network():
    needs = Needs(agent=MLPAgent, why={"agent": "nothing is remembered"})
    needs.check_built(built(agent_class=MLPAgent), settings())
    said = refusal(needs.check_built, built(agent_class=RNNAgent), settings())
    assert said == "learner 'some_learner' needs agent=mlp (nothing is remembered), got agent=rnn"
    refusal(needs.check_built, SimpleNamespace(), settings())  # a controller without agent network


# -- put together ----------------------------------------------------------------------------------


def test_both():
    first = Needs(BasicMAC, MLPAgent, {"mixer": None, "replay": "latest"}, {"mixer": "a"})
    second = Needs(mac=DACMAC, settings={"mixer": "vdn"}, why={"mixer": "b", "replay": "c"})
    assert first | second == Needs(
        DACMAC, MLPAgent, {"mixer": "vdn", "replay": "latest"}, {"mixer": "b", "replay": "c"}
    )
    assert first | Needs() == first == Needs() | first


# -- every shipped algorithm -----------------------------------------------------------------------


# An environment that mamd_op knows too.
CONFIGS = {name: build_config(name, "spread3_sep") for name in list_configs("algs")}


def numbers_of(config):
    """Keys with numbers that `utils.config` leaves to the learners."""
    return [
        key
        for key, value in config.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in RANGES
    ]


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_number_of_an_algorithm_has_a_range(algorithm):
    config = CONFIGS[algorithm]
    learner = LEARNERS[config["learner"]]
    # What the environment adds.
    task = {"n_agents": 3, "n_actions": 3, "episode_limit": 5, "continuous_actions": False}
    if config.get("agent_own_state_size") is True:
        task["agent_own_state_size"] = 0

    def check(**changes):
        learner.check_settings(SimpleNamespace(**(config | task | changes)))

    check()
    for key in numbers_of(config):
        assert key in learner.ranges, f"{learner.__name__} has no range for {key}"
        wanted = learner.ranges[key]
        assert wanted.holds(config[key]), key
        outside = next(value for value in OUTSIDE if not wanted.holds(value))
        with pytest.raises(ConfigError, match=key) as caught:
            check(**{key: outside})
        assert "\n" not in str(caught.value)


def test_every_range_is_of_a_key():
    """A misspelt key would never be checked."""
    known = {key for config in CONFIGS.values() for key in config}
    for learner in LEARNERS.values():
        for key in learner.ranges:
            assert key in known, f"{learner.__name__}: {key}"

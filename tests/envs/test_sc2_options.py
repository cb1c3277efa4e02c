"""SMAC's options stand once: what follows from them."""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np
import pytest

from envs import make_vector_env
from envs.starcraft.battle import Battle
from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import map_info
from envs.starcraft.game import StarCraft2Env, make_env
from envs.starcraft.options import (
    HardOptions,
    Options,
    SC2Options,
    SC2V2Options,
    SimulatorOptions,
    SimulatorV2Options,
    V2Options,
    defaults_of,
    ranges_of,
)
from envs.starcraft.smac.rules import Rules, make_rules
from envs.starcraft.upstream import SC2HardEnv, SC2V2Env
from envs.starcraft.v2 import SC2SimV2
from utils.errors import ConfigError

MAKERS = [
    ("sc2sim", SC2Sim, SimulatorOptions),
    ("sc2sim_v2", SC2SimV2, SimulatorV2Options),
    ("sc2", make_env, SC2Options),
    ("sc2", StarCraft2Env, SC2Options),
    ("sc2hard", SC2HardEnv, HardOptions),
    ("sc2v2", SC2V2Env, SC2V2Options),
]


@pytest.mark.parametrize(("name", "make", "options"), MAKERS)
def test_signatures_and_ranges_are_those_of_the_options(name, make, options):
    parameters = inspect.signature(make).parameters
    ours = {
        key: one.default
        for key, one in parameters.items()
        if key not in ("n_envs", "seed", "engine")
    }
    assert ours == defaults_of(options)
    assert make.ranges == ranges_of(options)
    with pytest.raises(ConfigError, match=r"no argument env_args.obs_al_health; did you mean 'obs"):
        make_vector_env(name, {"obs_al_health": False}, 1, 0, "serial", "train_env")
    with pytest.raises(TypeError, match="obs_al_health"):
        make(
            **{
                "obs_al_health": False,
                "seed": 1,
                **({"n_envs": 1} if "n_envs" in parameters else {}),
            }
        )


def test_every_switch_and_number_has_a_range():
    for options in (SC2Options, SC2V2Options, HardOptions, SimulatorOptions, SimulatorV2Options):
        for key, default in defaults_of(options).items():
            assert (key in ranges_of(options)) == isinstance(default, (bool, int, float)) or (
                key in ("difficulty", "replay_film")
            ), key


def test_a_subclass_has_its_own_signature():
    class Mine(SC2Sim):
        def __init__(self, n_envs, seed=None, colour="red", map_name="3m"):
            super().__init__(n_envs, seed, map_name=map_name)
            self.colour = colour

    assert list(inspect.signature(Mine).parameters) == ["n_envs", "seed", "colour", "map_name"]
    with Mine(1, 2, colour="blue") as env:
        assert env.n_agents == 3
        assert env.colour == "blue"


def test_what_the_compiled_rules_know():
    info = map_info("MMM")
    switches = {one.name for one in fields(V2Options) if isinstance(one.default, (bool, float))}
    assert switches <= set(Rules._fields)
    smac = make_rules(info, Options(reward_win=np.float32(5), obs_last_action=np.True_))
    assert (smac.reward_win, smac.obs_last_action) == (5.0, True)
    assert {type(value) for value in smac} == {bool, int, float}
    assert (smac.conic_fov, smac.obs_own_pos, smac.cuts_rewards) == (False, False, False)
    assert (smac.prob_obs_enemy, smac.action_mask, smac.first_attack) == (1.0, True, 6)
    v2 = make_rules(info, V2Options(conic_fov=True, obs_own_pos=True))
    assert (v2.conic_fov, v2.obs_own_pos, v2.cuts_rewards, v2.first_attack) == (
        True,
        True,
        True,
        18,
    )
    assert [type(value) for value in v2] == [type(value) for value in smac]


def test_units_are_the_battles_own_arrays():
    battle = Battle.of_map(map_info("3m"), 2)
    battle.units.x[1, 2] = 7.0
    assert battle.x[1, 2] == 7.0

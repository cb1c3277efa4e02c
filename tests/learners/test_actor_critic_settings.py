"""PPO, MADDPG, MAAC and MAMT: every number in their yaml files has a range, and every default lies
in it.
"""

from types import SimpleNamespace

import pytest
from learner_fixtures import make_args

from learners import REGISTRY as LEARNERS
from utils.config import CONFIG_DIR, RANGES, load_file
from utils.errors import ConfigError

ALGORITHMS = [
    *("ia2c", "maa2c", "vdac_sum", "vdac_mix", "mappo_public"),
    *("ippo", "mappo", "ma_ppo", "maddpg", "maac", "mamd", "mamd_op", "mamt"),
    *("mamt_fixed", "mamt_random", "mamt_ws", "mamt_ppo"),
]


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_has_a_range(algorithm):
    config = vars(make_args(algorithm, batch_size_run=1))
    known = RANGES | LEARNERS[config["learner"]].ranges
    numbers = {key for key, value in config.items() if is_number(value)}
    environment = {"n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit"}
    environment |= {"agent_own_state_size"}
    assert numbers - environment <= set(known)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_defaults_fit_and_numbers_below_zero_do_not(algorithm):
    """Of `tsallis_q` alone any number is allowed."""
    args = make_args(algorithm)
    args.env_args = {"map_name": "spread3_mix"}
    learner = LEARNERS[args.learner]
    learner.check_settings(args)
    own = load_file(CONFIG_DIR / "algs" / f"{algorithm}.yaml")
    default = load_file(CONFIG_DIR / "default.yaml")
    for key in set(own) - set(default) - {"tsallis_q"}:
        if is_number(getattr(args, key)):
            with pytest.raises(ConfigError, match=rf"{key} must be .*, got -1"):
                learner.check_settings(SimpleNamespace(**vars(args) | {key: -1}))

"""Whole runs of PQN-VDN, the A2C family, the public MAPPO and HPN-QMIX: they train, and a resumed
run equals an uninterrupted one.
"""

import pytest
from run_fixtures import assert_goes_on, finish, start_run

from utils.errors import ConfigError

COMMON = [
    *("runner=vector", "batch_size_run=4", "seed=3", "use_cuda=False", "rnn_hidden_dim=8"),
    *("test_interval=40", "test_nepisode=4", "learner_log_interval=1", "runner_log_interval=1"),
    *("t_max=160", "save_model_interval=100000"),
]
FRESH = [*COMMON, "batch_size=4", "buffer_size=4", "env_args.episode_limit=10"]
CRITIC = [*FRESH, "critic_hidden_dim=8"]
REPLAYED = [*COMMON, "batch_size=4", "buffer_size=8", "env_args.map_name=3m", "hpn_hyper_dim=16"]
# algorithm -> environment, settings
RUNS = {
    "pqn_vdn": ("predator_prey", [*FRESH, "pqn_minibatches=2", "epsilon_anneal_time=100"]),
    "ia2c": ("predator_prey", CRITIC),
    "maa2c": ("predator_prey", CRITIC),
    "vdac_sum": ("predator_prey", CRITIC),
    "vdac_mix": ("predator_prey", [*CRITIC, "mixing_embed_dim=4", "hypernet_embed=8"]),
    "mappo_public": (
        "predator_prey",
        [*CRITIC, "ppo_epochs=2", "accumulated_episodes=4", "popart=True"],
    ),
    "hpn_qmix": ("sc2sim", REPLAYED),
}


def start(algorithm, run_dir):
    environment, settings = RUNS[algorithm]
    return start_run(algorithm, environment, run_dir, settings)


@pytest.mark.parametrize("algorithm", RUNS)
def test_resumed_run_equals_the_uninterrupted_one(algorithm, tmp_path):
    whole = start(algorithm, tmp_path / "whole")
    before = [param.detach().clone() for param in whole.learner.params]
    assert finish(whole) is not None
    moved = [not (a == b).all() for a, b in zip(before, whole.learner.params, strict=True)]
    assert all(moved)
    assert_goes_on(lambda run_dir: start(algorithm, run_dir), tmp_path, stop_at=80)


def test_hpn_needs_entities(tmp_path):
    settings = [*COMMON, "batch_size=4", "buffer_size=8"]
    with pytest.raises(ConfigError, match="environment 'predator_prey' does not say") as caught:
        start_run("hpn_qmix", "predator_prey", tmp_path, settings)
    assert "\n" not in str(caught.value)
